"""Who gets a model's traffic: since when, by whom and why, and what each serving process makes of it.

Read from the record, its history and the processes' own reports alone, so that it is told while everything else is
down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlops_assets.history import author, clock
from mlops_assets.links.endpoint import answers, refuses

if TYPE_CHECKING:
    from resources.release_record import Change, ReleaseRecord, Variant
    from resources.serving_status import ServingStatus

COLUMNS = ("role", "version", "release", "percent", "since (UTC)", "by", "why")
SERVING_COLUMNS = ("process", "revision", "answers", "refused", "said at (UTC)")


@dataclass(frozen=True)
class Standing:
    """A variant, and the change that gave it the role and the weight it has."""

    variant: Variant
    change: Change

    @property
    def cells(self) -> tuple[object, ...]:
        one, change = self.variant, self.change
        return one.role, one.version, one.release, one.weight, clock(change.at), author(change.by), change.why


def standings(record: ReleaseRecord, history: Sequence[Change]) -> list[Standing]:
    """Each variant of the record, as it stands."""
    return [Standing(variant, _since(variant, history)) for variant in record.variants]


def remarks(record: ReleaseRecord) -> Iterator[str]:
    """What the table does not show: where a canary goes, what ended last, where a rollback leads."""
    if record.canary and record.limits:
        steps, limits = ", ".join(map(str, record.steps)), record.limits
        yield (
            f"The canary is at step {record.step + 1} of {len(record.steps)} ({steps} %). It ends when over "
            f"{limits.max_error_share:.1%} of its requests fail, or when, after {limits.min_requests}, their "
            f"p95 latency is over {limits.max_latency_ratio:g} times the champion's."
        )
    elif record.challenger:
        yield "An A/B split: it stays until somebody changes it."
    for one in record.change.refused:
        yield f"{one.role} {one.release} (version {one.version}) was taken out by {record.by}: {record.why}"
    to = "the champion alone" if record.challenger else record.previous and f"version {record.previous.version}"
    yield f"A rollback leads to {to}." if to else "There is no release before it to roll back to."


def reports(record: ReleaseRecord, serving: Sequence[ServingStatus]) -> list[tuple[object, ...]]:
    """A row for each serving process; one that is behind the record says so."""
    return [
        (one.process, _revision(one.revision, record.revision), answers(one), refuses(one), clock(one.at.isoformat()))
        for one in serving
    ]


def _since(variant: Variant, history: Sequence[Change]) -> Change:
    """The oldest of the latest changes that all left the variant as it is."""
    unbroken = history[-1]
    for change in reversed(history):
        if variant not in change.after:
            break
        unbroken = change
    return unbroken


def _revision(followed: int | None, now: int) -> str:
    return str(now) if followed == now else f"{followed or 'none'}, {now} is to come"
