"""The history of a model: moves of the champion alias and of the endpoint's traffic, and every decision about it.

Decisions that nothing came of are most of them. They answer "why was it not retrained in August?", and would hide all
else: those that follow each other are told as one line, unless each is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mlops_assets.declarations import ModelPipeline

if TYPE_CHECKING:
    from resources.champions import ChampionStore
    from resources.decisions import Decided
    from resources.releases import ReleaseStore, Variant

NOTHING_CAME = {"no", "wait", "hold"}


@dataclass(frozen=True)
class Event:
    """Who or what did or decided what, when, why; a move goes from a version to another, a decision to its outcome.

    `day` is what a decision is about; it was made `times` times, last at `until`, on this `evidence`.
    """

    at: str
    by: str
    what: str
    before: str
    after: str
    why: str
    day: date | None = None
    until: str = ""
    times: int = 1
    evidence: Mapping[str, Any] = field(default_factory=dict)
    decision: bool = False

    def to_json(self) -> dict[str, Any]:
        told = {key: value for key, value in asdict(self).items() if key not in ("before", "after")}
        return {**told, "from": self.before, "to": self.after, "day": self.day.isoformat() if self.day else None}


def events(
    model: ModelPipeline, releases: ReleaseStore, champions: ChampionStore, decisions: Iterable[Decided] = ()
) -> list[Event]:
    """Everything that happened to the model, and what was decided about it, oldest first."""
    crowned = [
        Event(
            move.at,
            move.by,
            "champion",
            f"version {move.before}" if move.before else "none",
            f"version {move.after}",
            move.why,
        )
        for move in champions.history(model.id)
    ]
    traffic = [
        Event(change.at, change.by, change.action, _shares(change.before), _shares(change.after), change.why)
        for change in releases.history(model.id)
    ]
    return sorted([*crowned, *traffic, *map(_decision, decisions)], key=lambda event: event.at)


def between(told: Iterable[Event], first: date | None, last: date | None) -> list[Event]:
    """Those about the days from `first` to `last`; a move is about the day on which it was made."""
    return [
        event for event in told if (first is None or _about(event) >= first) and (last is None or _about(event) <= last)
    ]


def brief(told: Iterable[Event]) -> Iterator[Event]:
    """The same with one line for decisions in a row that nothing came of: the last of them, and how many they were."""
    for (nothing_came, _, _), row in groupby(told, key=_kind):
        some = list(row)
        if nothing_came and len(some) > 1:
            yield _as_one(some)
        else:
            yield from some


def author(by: str) -> str:
    """A run by the part of its id that Dagster's pages show; people and sensors by their names."""
    return by[:12] if by.startswith("run ") else by


def clock(at: str) -> str:
    """A time of the history as people read it; all of them are in UTC."""
    return at[:19].replace("T", " ")


def _decision(decided: Decided) -> Event:
    return Event(
        decided.at,
        decided.by,
        decided.kind,
        "",
        decided.outcome,
        "; ".join(decided.reasons),
        decided.day,
        decided.until,
        decided.times,
        decided.evidence,
        decision=True,
    )


def _as_one(some: Sequence[Event]) -> Event:
    first, last = some[0], some[-1]
    days = {_about(event) for event in some}
    spread = len(days) > 1
    return replace(
        last,
        at=first.at,
        what=f"{last.what}, {min(days)} to {max(days)}" if spread else last.what,
        why=f"{len(some)} answers; the last: {last.why}",
        day=None if spread else last.day,
        times=sum(event.times for event in some),
    )


def _kind(event: Event) -> tuple[bool, str, str]:
    """Neighbours that are told as one have this in common."""
    return event.decision and event.after in NOTHING_CAME, event.what, event.after


def _about(event: Event) -> date:
    return event.day or date.fromisoformat(event.at[:10])


def _shares(variants: Sequence[Variant]) -> str:
    return ", ".join(map(_share, variants)) or "none"


def _share(variant: Variant) -> str:
    return f"version {variant.version} " + ("as shadow" if variant.role == "shadow" else f"{variant.weight} %")
