"""The thermal sensor: slots go down while it is hot and come back when it has cooled, and only then."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.hardware.thermal import LEVELS, Level, Thermal
from sensors.thermal import COOL_SECONDS, POOL, Memory, slots_decision, thermal_sensor

USUAL = 4
levels = st.sampled_from(LEVELS)


def heat(level: Level) -> Thermal:
    return Thermal(level, "a test", "so it says")


def lived(readings: list[tuple[Level, float]], slots: int = USUAL) -> list[tuple[Level, float, int]]:
    """The slots after each reading, made so many seconds after the one before."""
    memory, now, seen = Memory(), 0.0, []
    for level, later in readings:
        now += later
        decision = slots_decision(heat(level), slots, memory, now)
        slots, memory = slots if decision.slots is None else decision.slots, decision.memory
        seen.append((level, now, slots))
    return seen


@given(st.lists(st.tuples(levels, st.floats(1, 300)), max_size=40))
def test_hot_means_fewer_slots_and_nothing_ever_means_more_than_usual(readings: list[tuple[Level, float]]) -> None:
    for level, _, slots in lived(readings):
        assert 0 <= slots <= USUAL
        assert level != "critical" or slots == 0
        assert level != "serious" or slots <= USUAL // 2


@given(st.lists(st.tuples(levels, st.floats(1, 300)), max_size=40))
def test_slots_come_back_only_after_it_was_nominal_for_long(readings: list[tuple[Level, float]]) -> None:
    """And then all of them, however often it went up and down before."""
    seen = lived([*readings, ("nominal", 1.0), ("nominal", COOL_SECONDS + 1)])
    assert seen[-1][2] == USUAL
    for (_, _, before), (level, now, after) in pairwise(seen):
        if after > before:
            assert level == "nominal"
            assert all(one == "nominal" for one, at, _ in seen if now - COOL_SECONDS <= at <= now)


def test_a_persons_change_stands() -> None:
    lowered = slots_decision(heat("serious"), USUAL, Memory(), 0.0)
    assert lowered.slots == 2
    after = slots_decision(heat("nominal"), 8, lowered.memory, 1000.0)
    assert (after.slots, after.memory) == (None, Memory())


def test_a_clock_set_back_waits_again_but_not_for_ever() -> None:
    memory = Memory(usual=USUAL, lowered=2, cool_since=10_000.0)
    waits = slots_decision(heat("nominal"), 2, memory, 100.0)
    assert (waits.slots, waits.memory.cool_since) == (None, 100.0)
    assert slots_decision(heat("nominal"), 2, waits.memory, 100.0 + COOL_SECONDS).slots == USUAL


def test_nothing_is_decided_where_nothing_can_be_read() -> None:
    assert slots_decision(None, USUAL, Memory(), 0.0).slots is None


def test_the_pool_of_an_instance_is_lowered_restored_and_each_change_explained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a real instance with its own storage; a slot that is taken away keeps nobody's run from going on."""
    now, says = 0.0, heat("nominal")
    sensor = thermal_sensor(lambda: now, lambda: says)
    with dg.instance_for_test(
        temp_dir=str(tmp_path), overrides={"concurrency": {"pools": {"default_limit": 2}}}
    ) as instance:
        slots, cursor = [], None

        def tick() -> str:
            nonlocal cursor
            context = dg.build_sensor_context(instance=instance, cursor=cursor)
            told = sensor(context)
            cursor = context.cursor
            slots.append(instance.event_log_storage.get_concurrency_info(POOL).slot_count)
            assert isinstance(told, dg.SkipReason)
            return str(told.skip_message)

        with caplog.at_level(logging.WARNING):
            tick()
            says = heat("critical")
            assert "from 2 to 0 slots" in tick()
            assert not instance.event_log_storage.claim_concurrency_slot(POOL, "a-run", "train").is_claimed
            assert not [limit for limit in instance.event_log_storage.get_pool_limits() if limit.from_default]
            now, says = 10.0, heat("nominal")
            tick()
            now = 10.0 + COOL_SECONDS
            assert "from 0 back to 2 slots" in tick()
        assert slots == [2, 0, 0, 2]
