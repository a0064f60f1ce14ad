"""Apple's GPU, read from what the systems' own tools printed; its limit set by MLX's own means."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from resources.hardware import Device
from resources.hardware.apple import IOREG, POWERMETRICS, gpu_percent, ioreg, leave_room, powermetrics
from resources.hardware.usage import metered

M2 = Device("mlx", "Apple M2 Pro", 32.0)
STATISTICS = """+-o AGXAcceleratorG14S  <class AGXAcceleratorG14S, id 0x1000003b2, registered, active, retain 98>
    {
      "IOReportLegend" = ({"IOReportChannels"=((1,2,"Device Utilization %")),"IOReportGroupName"="Internal"})
      "PerformanceStatistics" = {"In use system memory (driver)"=0,"Alloc system memory"=5296744038,\
"Tiler Utilization %"=10,"recoveryCount"=0,"Renderer Utilization %"=15,"Device Utilization %"=16,\
"In use system memory"=2363801600}
      "IOClass" = "AGXAcceleratorG14S"
    }

"""
SAMPLED = """*** Sampled system activity (Sun Nov  9 10:11:12 2025 +0100) (103.11ms elapsed) ***


**** GPU usage ****

GPU HW active frequency: 444 MHz
GPU HW active residency:  {active}% (444 MHz:  20% 612 MHz: 1.0% 808 MHz:   0%)
GPU SW requested state: (P1 : 100% P2 :   0% P3 :   0%)
GPU idle residency:  79.50%
GPU Power: 123 mW
"""


def test_the_drivers_statistics_tell_how_busy_it_is() -> None:
    """Neither the legend's word nor the tiler's number is taken for it; of two GPUs, the busier."""
    assert ioreg(STATISTICS) == 16
    assert ioreg(STATISTICS + STATISTICS.replace('%"=16', '%"=93')) == 93


def test_powermetrics_tells_the_residency_of_its_last_sample() -> None:
    assert powermetrics(SAMPLED.format(active="20.50")) == 20.5
    assert powermetrics(SAMPLED.format(active="20.50") + SAMPLED.format(active="100")) == 100
    assert powermetrics("GPU active residency:   5.43% (396 MHz: 5.4%)") == 5.43  # of macOS 12


@pytest.mark.parametrize("text", ["", "powermetrics must be invoked as the superuser", '"Renderer Utilization %"=40'])
def test_what_cannot_be_read_is_no_number(text: str) -> None:
    assert (ioreg(text), powermetrics(text)) == (None, None)


def test_what_needs_no_privilege_is_asked_first() -> None:
    asked: list[Sequence[str]] = []

    def told(command: Sequence[str]) -> str | None:
        asked.append(command)
        return SAMPLED.format(active="7.5") if command is POWERMETRICS else "nothing"

    assert (gpu_percent(told), asked) == (7.5, [IOREG, POWERMETRICS])
    assert gpu_percent(lambda _: None) is None


def test_mlx_is_bound_to_a_share_of_the_memory_that_it_shares() -> None:
    """Its own bound is beyond what the machine has; the share leaves room for the CPU's part of a training."""
    import mlx.core as mx

    before = mx.get_memory_limit()
    try:
        leave_room(M2)
        assert mx.get_memory_limit() == int(0.7 * 32 * 2**30)
        leave_room(Device("cpu", "Apple M2 Pro", 16.0))
        assert mx.get_memory_limit() == int(0.7 * 32 * 2**30), "a CPU has its own rules"
    finally:
        mx.set_memory_limit(before)


def test_what_mlx_held_is_the_peak_of_this_work_alone() -> None:
    """A process does many trainings: the bigger one before does not count for the next."""
    import mlx.core as mx

    with metered(M2) as big:
        held = mx.zeros((100, 2**20))
        mx.eval(held)
        del held
    with metered(M2) as small:
        mx.eval(mx.zeros((10, 2**20)))
    assert 0.39 < big.metrics["hardware/gpu_peak_memory_gb"] < 0.6
    assert 0.039 < small.metrics["hardware/gpu_peak_memory_gb"] < 0.2
    assert "hardware/gpu_percent" not in small.metrics, "no Mac, no number"
