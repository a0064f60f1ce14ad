"""Release records: which Bentos of a model get traffic, and how it came to be so.

    <root>/<team>/<model>.json            the record; replaced as a whole, never edited in place
    <root>/<team>/<model>.history.jsonl   every change, one line each, oldest first

The record is the point of commit and carries its own last change; the history is written after it. A
process killed between the two leaves a history one line short, which every reader completes from the
record and the next writer mends. So: no change is ever visible without its history, and none is lost.

A verb reads the record, decides, and commits against the revision it read (or the `revision` that its caller had
seen and decided by). Of two at once one wins; the other changes nothing and is told who won. Imports no Dagster: the
serving process reads these too, and refuses what does not answer.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from resources.environment import home
from resources.release_record import (
    Change,
    InvalidReleaseError,
    Limits,
    Refusal,
    ReleaseRecord,
    Role,
    Shares,
    Variant,
    champion_only,
    next_record,
    phrase,
    without,
)

__all__ = [
    "Change", "CorruptReleaseError", "InvalidReleaseError", "Limits", "ReleaseRecord", "ReleaseStore", "Role",
    "SplitRunningError", "StaleReleaseError", "UnknownReleaseError", "Variant",
]  # fmt: skip
MODEL_ID = re.compile(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*")
LOCK_SECONDS = 10.0


class StaleReleaseError(RuntimeError):
    """Somebody else changed the release first."""

    @classmethod
    def of(cls, model: str, expected: int, now: ReleaseRecord) -> Self:
        won = now.change
        return cls(
            f"The release of {model!r} is at revision {now.revision}, not {expected}: {won.by} did {won.action!r} at "
            f"{won.at} ({won.why}), now {phrase(now.variants)}. Nothing was changed; look at it, then try again."
        )


class UnknownReleaseError(LookupError):
    """A release was asked for that this model never had."""

    @classmethod
    def of(cls, model: str, asked: str, known: Sequence[str]) -> Self:
        return cls(
            f"{model!r} has no {asked} (known: {', '.join(known) or 'none'}). "
            f"Materialize '{model}/endpoint' to release one."
        )


class SplitRunningError(InvalidReleaseError):
    """A canary was to begin where an A/B split runs, which only a person ends."""

    @classmethod
    def split(cls, now: ReleaseRecord, release: str) -> Self:
        return cls(
            f"{now.model!r} cannot begin a canary of {release}: an A/B split runs since {now.began} "
            f"({phrase(now.answering)}). End it with `mlops promote {now.model}` or "
            f"`mlops traffic {now.model} --champion-only`, then try again."
        )


class CorruptReleaseError(ValueError):
    """A release record that cannot be read."""

    @classmethod
    def of(cls, path: Path, problem: object) -> Self:
        return cls(f"Release record {path} cannot be read ({problem}). Restore it from the last line of its history.")


@dataclass(frozen=True)
class ReleaseStore:
    """The release records under `root`; without one, those of MLOPS_HOME, found when used."""

    root: Path | None = None

    def read(self, model: str) -> ReleaseRecord | None:
        """The record now, or None before the first release. CorruptReleaseError when it cannot be read."""
        path = self.path(model)
        try:
            return ReleaseRecord.from_json(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptReleaseError.of(path, f"{type(error).__name__}: {error}") from error

    def current(self, model: str) -> ReleaseRecord:
        """The record now; UnknownReleaseError before the first release."""
        now = self.read(model)
        if now is None:
            raise UnknownReleaseError.of(model, "release yet", [])
        return now

    def models(self) -> list[str]:
        """The models that have a release record, sorted."""
        return sorted(f"{path.parent.name}/{path.stem}" for path in self._root.glob("*/*.json"))

    def history(self, model: str) -> list[Change]:
        """Every change, oldest first."""
        return self._history(model, self.read(model))

    def start_canary(
        self,
        model: str,
        release: str,
        version: str,
        steps: Sequence[int],
        *,
        by: str,
        why: str,
        limits: Limits | None = None,
        revision: int | None = None,
    ) -> ReleaseRecord:
        """Give a new release the first of `steps` (percents ascending to 100), in place of a canary that was there.

        The first release of a model takes all traffic at once: there is nothing to compare it with. A release that
        answers already is left as it stands, so a repeated call is harmless. The serving process holds the canary
        to `limits`. SplitRunningError while an A/B split runs.
        """
        if list(steps) != sorted(set(steps)) or not steps or steps[0] < 1 or steps[-1] != 100:
            raise InvalidReleaseError(
                f"{model!r}: canary steps {list(steps)} are not percents ascending to 100, e.g. [10, 50, 100]."
            )
        now = self._seen(model, revision)
        if now and release in [variant.release for variant in now.answering]:
            return now
        if now and now.challenger and not now.steps:
            raise SplitRunningError.split(now, release)
        if now is None or steps[0] == 100:
            return self._to_champion(model, now, release, version, "release" if now is None else "promote", by, why)
        variants = _beside(now, release, version, steps[0])
        return self._commit(model, now, Shares(variants, tuple(steps), 0, limits or Limits()), by, why, "start canary")

    def advance(self, model: str, *, by: str, why: str, revision: int | None = None) -> ReleaseRecord:
        """Move the running canary to its next step; at 100 % it is the champion."""
        now = self._released(model, revision)
        if (canary := now.canary) is None:
            raise UnknownReleaseError.of(model, "canary running", [phrase(now.variants)])
        step = now.step + 1
        if step >= len(now.steps) or now.steps[step] == 100:
            return self._to_champion(model, now, canary.release, canary.version, "promote", by, why)
        variants = _beside(now, canary.release, canary.version, now.steps[step])
        return self._commit(model, now, replace(now.shares, variants=variants, step=step), by, why, "advance canary")

    def promote(
        self, model: str, version: str | None = None, *, by: str, why: str, revision: int | None = None
    ) -> ReleaseRecord:
        """Give all traffic to the challenger, or to `version` (any that the history knows, forward or back)."""
        now = self._released(model, revision)
        variant = self._challenger_of(now) if version is None else self._known(model, now, version)
        return self.release(model, variant.release, variant.version, by=by, why=why, revision=now.revision)

    def release(
        self, model: str, release: str, version: str, *, by: str, why: str, revision: int | None = None
    ) -> ReleaseRecord:
        """Give a release all traffic at once, whether the history knows it or not."""
        now = self._seen(model, revision)
        if now and now.champion.release == release and now.challenger is None:
            return now
        return self._to_champion(model, now, release, version, "release" if now is None else "promote", by, why)

    def rollback(self, model: str, *, by: str, why: str, revision: int | None = None) -> ReleaseRecord:
        """Back at once: a challenger loses its traffic; without one, champion and previous release change places.

        A second rollback therefore undoes the first. Going further back is `promote(model, version)`.
        """
        now = self._released(model, revision)
        if now.challenger is not None:
            return self._commit(model, now, champion_only(now.variants), by, why, "rollback")
        if now.previous is None:
            raise UnknownReleaseError.of(model, "previous release to return to", [now.champion.release])
        return self._to_champion(model, now, now.previous.release, now.previous.version, "rollback", by, why)

    def split(
        self, model: str, release: str, version: str, percent: int, *, by: str, why: str, revision: int | None = None
    ) -> ReleaseRecord:
        """Give a challenger so many percent beside the champion, until somebody changes it: a sticky A/B split.

        It takes the place of a challenger that was there, also of a canary.
        """
        now = self._released(model, revision)
        if not 1 <= percent <= 99:
            raise InvalidReleaseError(f"{model!r}: {percent} is no share of a split; give 1 to 99 percent.")
        if release == now.champion.release:
            raise InvalidReleaseError(
                f"{model!r}: {release} (version {version}) is the champion; a split is between two releases."
            )
        shares = Shares(_beside(now, release, version, percent))
        return now if shares == now.shares else self._commit(model, now, shares, by, why, "split")

    def champion_only(self, model: str, *, by: str, why: str, revision: int | None = None) -> ReleaseRecord:
        """End a canary or a split in the champion's favour; without one nothing changes. A shadow stays."""
        now = self._released(model, revision)
        if now.challenger is None:
            return now
        return self._commit(model, now, champion_only(now.variants), by, why, "champion only")

    def shadow(
        self, model: str, release: str, version: str, *, by: str, why: str, revision: int | None = None
    ) -> ReleaseRecord:
        """Let a release answer unheard beside the others, in place of a shadow that was there; a canary goes on."""
        now = self._released(model, revision)
        if release in [variant.release for variant in now.answering]:
            raise InvalidReleaseError(
                f"{model!r}: {release} (version {version}) answers already ({phrase(now.answering)}); "
                "a shadow is a release whose answers are not returned."
            )
        return self._with_shadow(now, (Variant(release, version, 0, "shadow"),), by, why, "shadow")

    def unshadow(self, model: str, *, by: str, why: str, revision: int | None = None) -> ReleaseRecord:
        """End the shadow; without one nothing changes."""
        return self._with_shadow(self._released(model, revision), (), by, why, "no shadow")

    def refuse(
        self, model: str, revision: int, release: str, *, by: str, why: str, action: Refusal = "refused"
    ) -> ReleaseRecord | None:
        """Take a release out that does not load, answer, or ("circuit breaker") keep its bounds; the record after it.

        For serving processes, which may all find the same at once: the first changes the record, the others change
        nothing. Nor does a verdict on a `revision` that is no more: it may be about other traffic. A challenger's
        traffic goes to the champion, a champion's to the release before; one that has none before it stays.
        """
        now = self.read(model)
        if now is None or now.revision != revision or (shares := without(now, release)) is None:
            return now
        try:
            return self._commit(model, now, shares, by, why, action)
        except StaleReleaseError:
            return self.read(model)

    def change(
        self,
        model: str,
        expected_revision: int,
        variants: Sequence[Variant],
        *,
        by: str,
        why: str,
        action: str = "change",
        steps: Sequence[int] = (),
        step: int = 0,
        limits: Limits | None = None,
    ) -> ReleaseRecord:
        """Commit new traffic if the record is still at `expected_revision` (0 before the first release).

        Raises StaleReleaseError, which names who won, when it is not; InvalidReleaseError when the variants are not
        one champion, at most one challenger and one shadow, and weights that sum to 100.
        """
        now = self._seen(model, expected_revision)
        shares = Shares(tuple(variants), tuple(steps), step, (limits or Limits()) if steps else None)
        return self._commit(model, now, shares, by, why, action)

    def path(self, model: str) -> Path:
        """Where the record of a model lies, whether or not it exists."""
        if not MODEL_ID.fullmatch(model):
            raise InvalidReleaseError(
                f"{model!r} is no model id; write it as <team>/<model>, e.g. flights/late_arrival."
            )
        return self._root / f"{model}.json"

    @property
    def _root(self) -> Path:
        return self.root or home() / "releases"

    def _commit(
        self, model: str, seen: ReleaseRecord | None, shares: Shares, by: str, why: str, action: str
    ) -> ReleaseRecord:
        """Replace the record if it is still the one that was `seen`."""
        expected = seen.revision if seen else 0
        with self._locked(model):
            now = self._seen(model, expected)
            history = self._history(model, now)
            record = next_record(model, history, now, shares, by, why, action)
            self._mend_history(model, history)
            _publish(self.path(model), record.to_json())
            self._append_history(model, record.change)
            return record

    def _to_champion(
        self, model: str, now: ReleaseRecord | None, release: str, version: str, action: str, by: str, why: str
    ) -> ReleaseRecord:
        shadow = tuple(v for v in now.variants if v.role == "shadow" and v.release != release) if now else ()
        return self._commit(model, now, Shares((Variant(release, version, 100), *shadow)), by, why, action)

    def _with_shadow(
        self, now: ReleaseRecord, shadow: tuple[Variant, ...], by: str, why: str, action: str
    ) -> ReleaseRecord:
        variants = (*now.answering, *shadow)
        if variants == now.variants:
            return now
        return self._commit(now.model, now, replace(now.shares, variants=variants), by, why, action)

    def _seen(self, model: str, revision: int | None) -> ReleaseRecord | None:
        """The record, which must be at `revision` if that is given."""
        now = self.read(model)
        if now and revision not in (None, now.revision):
            raise StaleReleaseError.of(model, revision or 0, now)
        if now is None and revision:
            raise UnknownReleaseError.of(model, f"release at revision {revision}", [])
        return now

    def _released(self, model: str, revision: int | None = None) -> ReleaseRecord:
        return self._seen(model, revision) or self.current(model)

    def _challenger_of(self, now: ReleaseRecord) -> Variant:
        if now.challenger is None:
            raise UnknownReleaseError.of(now.model, "challenger to promote", [phrase(now.variants)])
        return now.challenger

    def _known(self, model: str, now: ReleaseRecord, version: str) -> Variant:
        """The newest release that carried `version`."""
        known = {variant.version: variant for change in self._history(model, now) for variant in change.after}
        if version not in known:
            raise UnknownReleaseError.of(model, f"released version {version!r}", list(known))
        return known[version]

    def _history_path(self, model: str) -> Path:
        return self.path(model).with_suffix(".history.jsonl")

    def _history(self, model: str, record: ReleaseRecord | None) -> list[Change]:
        path = self._history_path(model)
        text = path.read_bytes() if path.exists() else b""
        written = [Change.from_json(json.loads(line)) for line in text.split(b"\n")[:-1]]
        missing = record and (not written or written[-1].revision < record.revision)
        return [*written, record.change] if record and missing else written

    def _mend_history(self, model: str, history: Sequence[Change]) -> None:
        """Cut a half-written last line and add the change that a killed writer did not get to."""
        path = self._history_path(model)
        text = path.read_bytes() if path.exists() else b""
        if not text.endswith(b"\n") and text:
            os.truncate(path, text.rfind(b"\n") + 1)
        if len(history) > text.count(b"\n"):
            self._append_history(model, history[-1])

    def _append_history(self, model: str, change: Change) -> None:
        with self._history_path(model).open("ab") as file:
            file.write(json.dumps(change.to_json()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _locked(self, model: str) -> Iterator[None]:
        from filelock import FileLock

        path = self.path(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS):
            yield


def _beside(now: ReleaseRecord, release: str, version: str, percent: int) -> tuple[Variant, ...]:
    """Champion and challenger, and a shadow that is neither."""
    shadow = (variant for variant in now.variants if variant.role == "shadow" and variant.release != release)
    champion = replace(now.champion, weight=100 - percent)
    return champion, Variant(release, version, percent, "challenger"), *shadow


def _publish(path: Path, record: dict[str, Any]) -> None:
    """Write beside, flush to disk, rename: a reader sees the old record or the new one, whole."""
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    with beside.open("wb") as file:
        file.write(json.dumps(record, indent=2).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
