"""What a release record says: which Bentos of a model get its traffic, and the last change that made it so.

A record holds one champion, at most one challenger (a canary, which grows in steps, or an A/B split, which stays) and
at most one shadow (its answers are logged, never returned). `ReleaseRecord.after` makes the next record of a change;
it decides nothing. A record of an older version of this code is read with defaults for what it lacks, and what a newer
one added is passed over. Imports no Dagster: the serving process reads these too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal, Self, TypeVar

Role = Literal["champion", "challenger", "shadow"]
Refusal = Literal["refused", "circuit breaker"]
REFUSALS: tuple[Refusal, ...] = ("refused", "circuit breaker")
Read = TypeVar("Read")


class InvalidReleaseError(ValueError):
    """A change that would not leave a working release."""

    @classmethod
    def of(cls, model: str, variants: Sequence[Variant]) -> Self:
        return cls(
            f"{model!r} cannot be released as {phrase(variants)}. Give one champion, at most one challenger, and "
            "weights that sum to 100; at most one shadow, with weight 0; and each release once."
        )


@dataclass(frozen=True)
class Variant:
    """A Bento that gets `weight` percent of the traffic; `version` is the registered model's."""

    release: str
    version: str
    weight: int
    role: Role = "champion"


@dataclass(frozen=True)
class Limits:
    """When a canary is ended, compared with the champion over the same time.

    More than `max_error_share` (0 to 1) of its requests failed, beyond the champion's own share; or, after
    `min_requests`, their 95th percentile of latency is over `max_latency_ratio` times the champion's.
    """

    max_error_share: float = 0.01
    max_latency_ratio: float = 3.0
    min_requests: int = 50


@dataclass(frozen=True)
class Change:
    """One line of the history: who did what, when, why, and the traffic before and after."""

    revision: int
    at: str
    by: str
    why: str
    action: str
    before: tuple[Variant, ...]
    after: tuple[Variant, ...]

    @property
    def refused(self) -> tuple[Variant, ...]:
        """What a serving process took out because it would not load, answer, or keep its bounds."""
        left = {variant.release for variant in self.after}
        return tuple(v for v in self.before if v.release not in left) if self.action in REFUSALS else ()

    def to_json(self) -> dict[str, Any]:
        """With `from` and `to`, as the history is read by people."""
        line = asdict(self)
        return {
            **{k: v for k, v in line.items() if k not in ("before", "after")},
            "from": line["before"],
            "to": line["after"],
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        return _read(cls, {**line, "before": _variants(line["from"]), "after": _variants(line["to"])})


@dataclass(frozen=True)
class Shares:
    """What a change sets: the variants, and for a canary its steps and the limits it is held to."""

    variants: tuple[Variant, ...]
    steps: tuple[int, ...] = ()
    step: int = 0
    limits: Limits | None = None


@dataclass(frozen=True)
class ReleaseRecord:
    """The traffic of one model now.

    `previous` is what a rollback returns to. `steps[step]` is a canary's percent; without steps a challenger is an A/B
    split. `limits` are there during a canary alone. `began` is when champion and challenger got the shares they have:
    evidence of this step is younger.
    """

    model: str
    revision: int
    variants: tuple[Variant, ...]
    previous: Variant | None
    steps: tuple[int, ...]
    step: int
    change: Change
    limits: Limits | None = None
    began: str = ""

    @property
    def champion(self) -> Variant:
        return next(variant for variant in self.variants if variant.role == "champion")

    @property
    def challenger(self) -> Variant | None:
        return self._of("challenger")

    @property
    def shadow(self) -> Variant | None:
        return self._of("shadow")

    @property
    def answering(self) -> tuple[Variant, ...]:
        """Those whose answers are returned."""
        return tuple(variant for variant in self.variants if variant.role != "shadow")

    @property
    def canary(self) -> Variant | None:
        """The challenger that grows in steps."""
        return self.challenger if self.steps else None

    @property
    def shares(self) -> Shares:
        return Shares(self.variants, self.steps, self.step, self.limits)

    @property
    def at(self) -> str:
        return self.change.at

    @property
    def by(self) -> str:
        return self.change.by

    @property
    def why(self) -> str:
        return self.change.why

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "change": self.change.to_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        change, steps, limits = Change.from_json(record["change"]), tuple(record["steps"]), record.get("limits")
        bounds = _read(Limits, limits) if limits else Limits()
        read = {
            "variants": _variants(record["variants"]),
            "previous": _read(Variant, record["previous"]) if record["previous"] else None,
            "steps": steps,
            "change": change,
            "limits": bounds if steps else None,
            "began": record.get("began") or change.at,
        }
        return _read(cls, {**record, **read})

    def _of(self, role: Role) -> Variant | None:
        return next((variant for variant in self.variants if variant.role == role), None)


def next_record(
    model: str, history: Sequence[Change], now: ReleaseRecord | None, shares: Shares, by: str, why: str, action: str
) -> ReleaseRecord:
    """The record after a change; `history` is all of what came before. Raises InvalidReleaseError."""
    _check(model, shares.variants)
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    at = max(at, now.at) if now else at  # a clock that was set back puts no change before the one that it follows
    revision, before = (now.revision + 1, now.variants) if now else (1, ())
    change = Change(revision, at, by, why, action, before, shares.variants)
    previous = _previous(now, [*history, change]) if now else None
    stands = now is not None and _answering(now.variants) == _answering(shares.variants)
    began = now.began if now and stands else at
    return ReleaseRecord(
        model, revision, shares.variants, previous, shares.steps, shares.step, change, shares.limits, began
    )


def without(now: ReleaseRecord, release: str) -> Shares | None:
    """The traffic without one release; None where it has none, or where nothing could take its place.

    What a challenger had goes to the champion. The release before takes the place of a champion, also beside a canary.
    """
    if release == now.champion.release:
        return _under(now, now.previous) if now.previous else None
    rest = tuple(variant for variant in now.variants if variant.release != release)
    if rest == now.variants:
        return None
    if now.challenger in rest:
        return Shares(rest, now.steps, now.step, now.limits)
    return champion_only(rest)


def champion_only(variants: Iterable[Variant]) -> Shares:
    """All traffic to the champion of these; a shadow stays."""
    return Shares(tuple(_of(v, 100) if v.role == "champion" else v for v in variants if v.role != "challenger"))


def refusals(history: Iterable[Change]) -> dict[str, tuple[Variant, Change]]:
    """By release, what was refused and not given traffic again since."""
    out: dict[str, tuple[Variant, Change]] = {}
    for change in history:
        out |= {variant.release: (variant, change) for variant in change.refused}
        for variant in change.after:
            if variant.role != "shadow":
                out.pop(variant.release, None)
    return out


def phrase(variants: Sequence[Variant]) -> str:
    return ", ".join(f"{v.role} {v.release} (version {v.version}) {v.weight} %" for v in variants) or "nothing"


def _under(now: ReleaseRecord, champion: Variant) -> Shares:
    """The same traffic under another champion, that was perhaps the challenger or the shadow."""
    rest = tuple(v for v in now.variants if v.role != "champion" and v.release != champion.release)
    if now.challenger in rest:
        return Shares((_of(champion, now.champion.weight), *rest), now.steps, now.step, now.limits)
    return Shares((_of(champion, 100), *rest))


def _of(variant: Variant, weight: int) -> Variant:
    return Variant(variant.release, variant.version, weight)


def _previous(now: ReleaseRecord, history: Sequence[Change]) -> Variant | None:
    """What a rollback returns to: the champion before, but none that a serving process refused."""
    champion = _champion(history[-1].after)
    before = now.champion if now.champion.release != champion.release else now.previous
    if before is None:
        return None
    out = {champion.release, *refusals(history)}
    earlier = (_champion(change.after) for change in reversed(history))
    return next((_of(one, 100) for one in (before, *earlier) if one.release not in out), None)


def _champion(variants: Iterable[Variant]) -> Variant:
    return next(variant for variant in variants if variant.role == "champion")


def _answering(variants: Iterable[Variant]) -> list[Variant]:
    return [variant for variant in variants if variant.role != "shadow"]


def _check(model: str, variants: Sequence[Variant]) -> None:
    roles = [variant.role for variant in variants]
    answering = [variant.weight for variant in _answering(variants)]
    sound = (
        roles.count("champion") == 1
        and roles.count("challenger") <= 1
        and roles.count("shadow") <= 1
        and len({variant.release for variant in variants}) == len(variants)
        and sum(answering) == 100
        and min(answering) >= 0
        and all(variant.weight == 0 for variant in variants if variant.role == "shadow")
    )
    if not sound:
        raise InvalidReleaseError.of(model, variants)


def _variants(given: Sequence[Mapping[str, Any]]) -> tuple[Variant, ...]:
    return tuple(_read(Variant, variant) for variant in given)


def _read(kind: type[Read], given: Mapping[str, Any]) -> Read:
    """One of these from JSON; a field that this code does not know was added by a newer one."""
    return kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})  # type: ignore[arg-type]
