"""Thermal states, read from what the systems' own tools printed."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from resources.hardware.thermal import (
    NOTIFIED,
    PMSET,
    POWERMETRICS,
    Level,
    _apple,
    _sensors,
    notified,
    pmset,
    powermetrics,
    thermal,
    throttled,
)

NEVER_HOT = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""
SLOWED = """2021-08-14 16:03:19 +0200 CPU Power notify
	CPU_Scheduler_Limit 	= 100
	CPU_Available_CPUs 	= 12
	CPU_Speed_Limit 	= 74
"""
PRESSED = """Machine model: Mac14,2
OS version: 25B78
Boot arguments:

*** Sampled system activity (Sun Nov  9 10:11:12 2025 +0100) (5006.83ms elapsed) ***


**** Thermal pressure ****

Current pressure level: Heavy
"""


@pytest.mark.parametrize(
    ("number", "level"), [(0, "nominal"), (1, "fair"), (2, "serious"), (3, "critical"), (4, "critical")]
)
def test_the_systems_own_key_is_a_number(number: int, level: Level) -> None:
    found = notified(f"com.apple.system.thermalpressurelevel {number}\n")
    assert found is not None
    assert found.level == level


@pytest.mark.parametrize("text", ["", "com.apple.system.thermalpressurelevel 9", "Notification center error"])
def test_what_cannot_be_read_is_no_reading(text: str) -> None:
    assert (notified(text), pmset(text), powermetrics(text)) == (None, None, None)


def test_pmset_tells_the_speed_or_that_it_was_never_hot() -> None:
    slowed, cool = pmset(SLOWED), pmset(NEVER_HOT)
    assert slowed is not None
    assert cool is not None
    assert (slowed.level, slowed.said) == ("serious", "the processor runs at 74 % of its speed")
    assert cool.level == "nominal"


@pytest.mark.parametrize(
    ("said", "level"),
    [
        ("2026-08-20 13:11:08 +0700 Thermal Warning Level = 0", "nominal"),
        ("2026-08-20 13:11:08 +0700 Thermal Warning Level = 1", "fair"),
        ("2026-08-20 13:11:08 +0700 Thermal Warning Level = 5", "serious"),
        ("2026-08-20 13:11:08 +0700 Thermal Warning Level = 10", "critical"),
        ("2026-09-23 14:05:31 -0700 Thermal Warning Level = 100", "serious"),
        ("2026-09-23 14:05:31 -0700 Thermal Warning Level = 110", "critical"),
        ("CPU Power notify\n\tCPU_Scheduler_Limit \t= 95\n\tCPU_Speed_Limit \t= 100", "fair"),
    ],
)
def test_pmset_tells_a_warning_and_the_worse_counts(said: str, level: Level) -> None:
    """The levels of IOPM.h; a processor at full speed is as hot as its warning says."""
    note = "Note: No performance warning level has been recorded\n"
    told = [pmset(f"{said}\n{note}"), pmset(f"{said}\n{note}CPU Power notify\n\tCPU_Speed_Limit \t= 100\n")]
    assert [one.level for one in told if one] == [level, level]


def test_a_warning_that_is_unknown_says_nothing() -> None:
    assert pmset("2026-08-20 13:11:08 +0700 Thermal Warning Level = 255\n") is None


def test_powermetrics_tells_the_pressure_of_its_last_sample() -> None:
    found = powermetrics(PRESSED.replace("Heavy", "Nominal") + PRESSED)
    assert found is not None
    assert found.level == "serious"


def test_a_mac_is_asked_first_what_needs_no_privilege() -> None:
    """The next is asked only where the one before did not answer."""
    asked: list[Sequence[str]] = []

    def only_powermetrics(command: Sequence[str]) -> str | None:
        asked.append(command)
        return PRESSED if command is POWERMETRICS else None

    (found,) = _apple(only_powermetrics)
    assert (found.source, asked) == ("powermetrics", [NOTIFIED, PMSET, POWERMETRICS])


@pytest.mark.parametrize(("degrees", "level"), [(60, "nominal"), (72, "fair"), (85, "serious"), (101, "critical")])
def test_a_sensor_is_judged_by_its_own_marks(degrees: float, level: Level) -> None:
    core = SimpleNamespace(label="Package id 0", current=degrees, high=80.0, critical=100.0)
    unmarked = SimpleNamespace(label="", current=120.0, high=None, critical=None)
    (found,) = _sensors({"coretemp": [core], "nvme": [unmarked]})
    assert found.level == level


def test_a_gpu_is_hot_where_its_clock_is_held_back_for_heat() -> None:
    """Power caps and idling hold it back too, and are no heat."""
    idle, power_cap, software, hardware = 0x1, 0x4, 0x20, 0x40
    assert [throttled(0, reasons, 70).level for reasons in (idle, power_cap, software, software | hardware)] == [
        "nominal", "nominal", "serious", "critical",
    ]  # fmt: skip


def test_this_machine_is_read_or_says_nothing() -> None:
    found = thermal()
    assert found is None or found.step in range(4)
