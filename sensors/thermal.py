"""Thermal: while the machine slows itself down for heat, fewer trainings start; when it has cooled, as many as before.

The slots of a pool count for every code location of the instance, so that one team's training does not cook
another's. What runs goes on: to kill it would throw its work away. Between "serious", where slots are taken, and
"nominal", where they are given back, nothing changes, and cooling has to last: a machine that is let off too early is
hot again at once. A person's change of the slots stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Self

import dagster as dg

from resources.hardware.thermal import LEVELS, Thermal, thermal

POOL = "training"
COOL_SECONDS = 120.0
EVERY_SECONDS = 30
SERIOUS, CRITICAL = LEVELS.index("serious"), LEVELS.index("critical")


@dataclass(frozen=True)
class Memory:
    """What an earlier tick did: the slots before, those it left, and since when it is cool (seconds of Unix)."""

    usual: int | None = None
    lowered: int | None = None
    cool_since: float | None = None

    @classmethod
    def read(cls, cursor: str | None) -> Self:
        return cls(**json.loads(cursor)) if cursor else cls()


@dataclass(frozen=True)
class SlotsDecision:
    """How many slots the pool gets, None for as they are, and why."""

    slots: int | None
    why: str
    memory: Memory


def slots_decision(heat: Thermal | None, slots: int, memory: Memory, now: float) -> SlotsDecision:
    """Half the slots while it is serious, none while it is critical, all again after COOL_SECONDS of nominal."""
    if heat is None:
        return SlotsDecision(None, "no thermal state can be read here", memory)
    if memory.lowered is not None and slots != memory.lowered:
        memory = Memory()  # somebody set the slots meanwhile
    usual = slots if memory.usual is None else memory.usual
    if heat.step >= SERIOUS:
        return _lower(heat, slots, usual, memory)
    if memory.usual is None:
        return SlotsDecision(None, str(heat), memory)
    if heat.step > 0:
        return SlotsDecision(None, f"{heat}: not cool yet", replace(memory, cool_since=None))
    since = now if memory.cool_since is None or memory.cool_since > now else memory.cool_since
    if now - since < COOL_SECONDS:
        left = COOL_SECONDS - (now - since)
        return SlotsDecision(None, f"{heat}: {left:.0f} s more of it are waited for", replace(memory, cool_since=since))
    return SlotsDecision(usual, f"{heat} for {now - since:.0f} s: from {slots} back to {usual} slots", Memory())


def _lower(heat: Thermal, slots: int, usual: int, memory: Memory) -> SlotsDecision:
    wanted = 0 if heat.step >= CRITICAL else usual // 2
    if wanted >= slots:  # it was worse, and is not yet good
        return SlotsDecision(None, f"{heat}: {slots} slots as they are", replace(memory, cool_since=None))
    return SlotsDecision(wanted, f"{heat}: from {slots} to {wanted} slots", Memory(usual, wanted))


def thermal_sensor(
    clock: Callable[[], float], read: Callable[[], Thermal | None] = thermal, pool: str = POOL
) -> dg.SensorDefinition:
    """Set the slots of `pool` by the thermal state; every change is in the log, with the reason."""

    @dg.sensor(
        name="thermal" if pool == POOL else f"thermal_{pool}",
        minimum_interval_seconds=EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Takes slots of the pool {pool!r} while this machine is hot, and gives them back when it is cool.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        storage = context.instance.event_log_storage
        if pool not in storage.get_concurrency_keys():  # else it would give the default back
            storage.initialize_concurrency_limit_to_default(pool)
        slots = storage.get_concurrency_info(pool).slot_count
        decision = slots_decision(read(), slots, Memory.read(context.cursor), clock())
        if decision.slots is not None:
            storage.set_concurrency_slots(pool, decision.slots)
            context.log.warning("Pool %r: %s", pool, decision.why)
        context.update_cursor(json.dumps(asdict(decision.memory)))
        return dg.SkipReason(f"Pool {pool!r}: {decision.why}")

    return sensor
