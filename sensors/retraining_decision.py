"""The decision to retrain: failing reports become one request, and every answer is told with its reasons.

Reports are daily. One of day D knows the world up to the end of D, and that moment, never the clock, is
what the decision reckons with: the same evidence gives the same answer and the same run key, however
late or often it is asked. The rules:

- either a drift verdict or a metric drop is a cause; the newest report of each that had enough rows counts;
- a broken data pipeline is none: nothing is requested while the newest quality report says broken, nor for a report
  of a broken day. What the reports of healthy days still say is judged anew;
- a failing report waits for the quality report of its day, but not for one that is more than three days behind;
- one request an episode: a failure that was answered is not asked about again until `cooldown` has passed,
  counted from the report that was answered and from the newest cutoff trained or asked for. A model that
  still fails then is news: the retraining did not help, or its gate refused it, and there is more to learn from;
- nothing is requested while a run of the training assets is in progress. A failure seen meanwhile is latched
  and judged when the run has ended, even if a later report passes;
- the training is as of the newest cutoff that lies within what the report knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal, Protocol, Self

NOT_ENOUGH_ROWS = "not enough rows"
PATIENCE = timedelta(days=3)  # how far the quality report may be behind and still be waited for
Outcome = Literal["retrain", "no", "wait", "broken pipeline"]


class Limits(Protocol):
    """What a `Monitor` says about retraining."""

    @property
    def cooldown(self) -> timedelta: ...

    @property
    def min_rows(self) -> int: ...


@dataclass(frozen=True)
class Signal:
    """What one check said about one report day, and the causes that it named."""

    check: str
    day: date
    passed: bool
    verdict: str
    rows: int
    causes: tuple[str, ...] = ()

    def enough(self, limits: Limits) -> bool:
        return self.verdict != NOT_ENOUGH_ROWS and self.rows >= limits.min_rows

    def __str__(self) -> str:
        return f"{self.check} of {self.day}: {self.verdict} ({self.rows} rows)"

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        return cls(**{**told, "day": date.fromisoformat(told["day"]), "causes": tuple(told["causes"])})


@dataclass(frozen=True)
class Asked:
    """The newest request: the report that it answered, the cutoff it is for, and why."""

    day: date
    cutoff: str
    instant: datetime
    run_key: str
    reasons: tuple[str, ...]

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        day, instant = date.fromisoformat(told["day"]), datetime.fromisoformat(told["instant"])
        return cls(day, told["cutoff"], instant, told["run_key"], tuple(told["reasons"]))


@dataclass(frozen=True)
class Memory:
    """What is kept from one decision to the next: the newest request, and failures that wait."""

    asked: Asked | None = None
    latched: tuple[Signal, ...] = ()

    def to_json(self) -> dict[str, Any]:
        asked = asdict(self.asked) if self.asked else None
        if asked:
            asked |= {"day": asked["day"].isoformat(), "instant": asked["instant"].isoformat()}
        return {"asked": asked, "latched": [told(signal) for signal in self.latched]}

    @classmethod
    def from_json(cls, memory: Mapping[str, Any]) -> Self:
        asked = memory.get("asked")
        latched = tuple(Signal.from_json(signal) for signal in memory.get("latched", ()))
        return cls(Asked.from_json(asked) if asked else None, latched)


@dataclass(frozen=True)
class Decision:
    """Whether to retrain and why (not). `cutoff` and `run_key` are given with a yes."""

    outcome: Outcome
    reasons: tuple[str, ...]
    memory: Memory
    day: date | None = None
    cutoff: str | None = None
    run_key: str | None = None

    @property
    def retrain(self) -> bool:
        return self.outcome == "retrain"


@dataclass(frozen=True)
class Evidence:
    """What a decision rests on.

    `pipeline` are the signals of the quality report, None for a model without one; `cutoffs` maps partition keys to
    their instants, `trained` is the newest cutoff that was trained, `running` the id of a run of its training assets
    in progress, `answer` what became of the newest request.
    """

    signals: Sequence[Signal]
    cutoffs: Mapping[str, datetime]
    pipeline: Sequence[Signal] | None = None
    trained: datetime | None = None
    running: str | None = None
    answer: str = ""
    _quality: list[Signal] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        said = [signal for signal in self.pipeline or () if signal.verdict != NOT_ENOUGH_ROWS]
        object.__setattr__(self, "_quality", sorted(_newest_by_day(said), key=lambda signal: signal.day))

    @property
    def health(self) -> Signal | None:
        """The newest word on the pipeline; a day with too few rows says nothing."""
        return self._quality[-1] if self._quality else None

    def broken(self, signal: Signal) -> bool:
        """Whether the pipeline was broken on the day of a report."""
        return any(said.day == signal.day and not said.passed for said in self._quality)

    def unjudged(self, day: date) -> bool:
        """Whether the quality report of a day is still to come."""
        if self.pipeline is None:
            return False
        known = self.health.day if self.health else min(signal.day for signal in self.signals)
        return not (self.health and self.health.day >= day) and day - known <= PATIENCE


def retraining_decision(model_id: str, evidence: Evidence, limits: Limits, memory: Memory = Memory()) -> Decision:
    """Decide about a model from what its checks said."""
    newest = _newest([signal for signal in evidence.signals if signal.enough(limits)])
    failing = tuple(signal for signal in newest if not signal.passed)
    health = evidence.health
    if health and not health.passed:
        before = tuple(signal for signal in memory.latched if not evidence.broken(signal))
        why = (str(health), *health.causes, *map(_not_judged, failing))
        return Decision("broken pipeline", why, replace(memory, latched=before), health.day)
    causes = tuple(signal for signal in failing or memory.latched if not evidence.broken(signal))
    if not causes:
        day = max((signal.day for signal in evidence.signals), default=None)
        return Decision("no", _no_cause(evidence, newest, failing), replace(memory, latched=()), day)
    return _of_causes(model_id, causes, evidence, limits, memory)


def _of_causes(
    model_id: str, causes: tuple[Signal, ...], evidence: Evidence, limits: Limits, memory: Memory
) -> Decision:
    """Something failed, and not by the pipeline: is it the time to answer?"""
    day, trained = max(signal.day for signal in causes), evidence.trained
    reasons = tuple(str(signal) for signal in causes)
    settled, latched = replace(memory, latched=()), replace(memory, latched=causes)
    if why := _answered(day, evidence, limits, memory) or _cooling(day, trained, limits, memory):
        return Decision("no", (*reasons, why), settled, day)
    cutoff = cutoff_within(day, evidence.cutoffs)
    if cutoff is None or (trained and evidence.cutoffs[cutoff] <= trained):
        return Decision("no", (*reasons, f"no cutoff after {trained} lies within what the report knows"), settled, day)
    if evidence.running:
        return Decision("wait", (*reasons, f"waits for run {evidence.running}"), latched, day, cutoff)
    if evidence.unjudged(day):
        return Decision("wait", (*reasons, f"waits for the quality report of {day}"), latched, day, cutoff)
    asked = Asked(day, cutoff, evidence.cutoffs[cutoff], f"{model_id}:{day}:{cutoff}", reasons)
    return Decision("retrain", reasons, Memory(asked), day, cutoff, asked.run_key)


def known_until(day: date) -> datetime:
    """The moment up to which a report of `day` knows the world: the end of the day, UTC."""
    return datetime.combine(day, time(), UTC) + timedelta(days=1)


def cutoff_within(day: date, cutoffs: Mapping[str, datetime]) -> str | None:
    """The newest cutoff whose instant a report of `day` already knows."""
    known = [key for key, instant in cutoffs.items() if instant <= known_until(day)]
    return max(known, key=cutoffs.__getitem__, default=None)


def told(signal: Signal) -> dict[str, Any]:
    """A signal as JSON."""
    return {**asdict(signal), "day": signal.day.isoformat(), "causes": list(signal.causes)}


def _newest(signals: Sequence[Signal]) -> list[Signal]:
    """Of each check the signal of the latest day; of one day the one that was given last."""
    latest: dict[str, Signal] = {}
    for signal in sorted(signals, key=lambda signal: signal.day):
        latest[signal.check] = signal
    return list(latest.values())


def _newest_by_day(signals: Sequence[Signal]) -> list[Signal]:
    """A day that was reported again counts as it was reported last."""
    return list({signal.day: signal for signal in signals}.values())


def _not_judged(signal: Signal) -> str:
    return f"{signal}, not judged"


def _no_cause(evidence: Evidence, newest: Sequence[Signal], failing: Sequence[Signal]) -> tuple[str, ...]:
    if failing:
        return tuple(f"{signal}, a day on which the pipeline was broken" for signal in failing)
    if newest:
        return ("nothing fails; " + ", ".join(map(str, newest)),)
    few = _newest(evidence.signals)
    return ("too few rows; " + ", ".join(map(str, few)) if few else "no report yet",)


def _answered(day: date, evidence: Evidence, limits: Limits, memory: Memory) -> str | None:
    if memory.asked is None or day - memory.asked.day >= max(limits.cooldown, timedelta(days=1)):
        return None
    came = f" ({evidence.answer})" if evidence.answer else ""
    return f"answered by the request for the report of {memory.asked.day}{came}"


def _cooling(day: date, trained: datetime | None, limits: Limits, memory: Memory) -> str | None:
    requested = memory.asked.instant if memory.asked else None
    last = max((instant for instant in (trained, requested) if instant), default=None)
    if last is None or known_until(day) >= last + limits.cooldown:
        return None
    return f"cools down until {last + limits.cooldown:%Y-%m-%d %H:%M}, last cutoff {last:%Y-%m-%d %H:%M}"
