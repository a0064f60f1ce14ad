"""Release records: which Bentos of a model get traffic, and how it came to be so.

    <root>/<team>/<model>.json            the record; replaced as a whole, never edited in place
    <root>/<team>/<model>.history.jsonl   every change, one line each, oldest first

The record is the point of commit and carries its own last change; the history is written after it. A
process killed between the two leaves a history one line short, which every reader completes from the
record and the next writer mends. So: no change is ever visible without its history, and none is lost.

A verb reads the record, decides, and commits against the revision it read. Of two at once one wins; the
other changes nothing and is told who won. Imports no Dagster: the serving process reads these too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from resources.environment import home

MODEL_ID = re.compile(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*")
Role = Literal["champion", "challenger"]
LOCK_SECONDS = 10.0


class StaleReleaseError(RuntimeError):
    """Somebody else changed the release first."""

    @classmethod
    def of(cls, model: str, expected: int, now: ReleaseRecord) -> Self:
        won = now.change
        return cls(
            f"The release of {model!r} is at revision {now.revision}, not {expected}: {won.by} did {won.action!r} at "
            f"{won.at} ({won.why}), now {_phrase(now.variants)}. Nothing was changed; look at it, then try again."
        )


class UnknownReleaseError(LookupError):
    """A release was asked for that this model never had."""

    @classmethod
    def of(cls, model: str, asked: str, known: Sequence[str]) -> Self:
        return cls(
            f"{model!r} has no {asked} (known: {', '.join(known) or 'none'}). "
            f"Materialize '{model}/endpoint' to release one."
        )


class InvalidReleaseError(ValueError):
    """A change that would not leave a working release."""


class CorruptReleaseError(ValueError):
    """A release record that cannot be read."""

    @classmethod
    def of(cls, path: Path, problem: object) -> Self:
        return cls(f"Release record {path} cannot be read ({problem}). Restore it from the last line of its history.")


@dataclass(frozen=True)
class Variant:
    """A Bento that gets `weight` percent of the traffic; `version` is the registered model's."""

    release: str
    version: str
    weight: int
    role: Role = "champion"


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

    def to_json(self) -> dict[str, Any]:
        """With `from` and `to`, as the history is read by people."""
        line = asdict(self)
        return {
            **{k: v for k, v in line.items() if k not in ("before", "after")},
            "from": line["before"],
            "to": line["after"],
        }

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Self:
        rest = {name: value for name, value in line.items() if name not in ("from", "to")}
        return cls(**rest, before=_variants(line["from"]), after=_variants(line["to"]))


@dataclass(frozen=True)
class ReleaseRecord:
    """The traffic of one model now. `previous` is what a rollback returns to; `steps[step]` the canary's percent."""

    model: str
    revision: int
    variants: tuple[Variant, ...]
    previous: Variant | None
    steps: tuple[int, ...]
    step: int
    change: Change

    @property
    def champion(self) -> Variant:
        return next(variant for variant in self.variants if variant.role == "champion")

    @property
    def challenger(self) -> Variant | None:
        return next((variant for variant in self.variants if variant.role == "challenger"), None)

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
    def from_json(cls, record: dict[str, Any]) -> Self:
        return cls(
            model=record["model"],
            revision=record["revision"],
            variants=_variants(record["variants"]),
            previous=Variant(**record["previous"]) if record["previous"] else None,
            steps=tuple(record["steps"]),
            step=record["step"],
            change=Change.from_json(record["change"]),
        )


def _variants(given: Sequence[dict[str, Any]]) -> tuple[Variant, ...]:
    return tuple(Variant(**variant) for variant in given)


def _phrase(variants: Sequence[Variant]) -> str:
    return ", ".join(f"{v.role} {v.release} (version {v.version}) {v.weight} %" for v in variants) or "nothing"


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

    def models(self) -> list[str]:
        """The models that have a release record, sorted."""
        return sorted(f"{path.parent.name}/{path.stem}" for path in self._root.glob("*/*.json"))

    def history(self, model: str) -> list[Change]:
        """Every change, oldest first."""
        return self._history(model, self.read(model))

    def start_canary(
        self, model: str, release: str, version: str, steps: Sequence[int], *, by: str, why: str
    ) -> ReleaseRecord:
        """Give a new release the first of `steps` (percents ascending to 100), in place of a challenger that was there.

        The first release of a model takes all traffic at once: there is nothing to compare it with. A
        release that is already champion or challenger is left as it stands, so a repeated call is harmless.
        """
        if list(steps) != sorted(set(steps)) or not steps or steps[0] < 1 or steps[-1] != 100:
            raise InvalidReleaseError(
                f"{model!r}: canary steps {list(steps)} are not percents ascending to 100, e.g. [10, 50, 100]."
            )
        now = self.read(model)
        if now and release in [variant.release for variant in now.variants]:
            return now
        if now is None or steps[0] == 100:
            return self._to_champion(model, now, release, version, "release" if now is None else "promote", by, why)
        return self.change(
            model, now.revision, _canary(now.champion, release, version, steps[0]),
            by=by, why=why, action="start canary", steps=steps, step=0,
        )  # fmt: skip

    def advance(self, model: str, *, by: str, why: str) -> ReleaseRecord:
        """Move the running canary to its next step; at 100 % it is the champion."""
        now, challenger = self._canary_of(model)
        step = now.step + 1
        if step >= len(now.steps) or now.steps[step] == 100:
            return self._to_champion(model, now, challenger.release, challenger.version, "promote", by, why)
        return self.change(
            model, now.revision, _canary(now.champion, challenger.release, challenger.version, now.steps[step]),
            by=by, why=why, action="advance canary", steps=now.steps, step=step,
        )  # fmt: skip

    def promote(self, model: str, version: str | None = None, *, by: str, why: str) -> ReleaseRecord:
        """Give all traffic to the running canary, or to `version` (any that the history knows, forward or back)."""
        now = self._released(model)
        variant = self._canary_of(model)[1] if version is None else self._known(model, now, version)
        if now.champion.release == variant.release and now.challenger is None:
            return now
        return self._to_champion(model, now, variant.release, variant.version, "promote", by, why)

    def rollback(self, model: str, *, by: str, why: str) -> ReleaseRecord:
        """Back at once: a running canary loses its traffic; without one, champion and previous release change places.

        A second rollback therefore undoes the first. Going further back is `promote(model, version)`.
        """
        now = self._released(model)
        if now.challenger is not None:
            return self.change(
                model, now.revision, (replace(now.champion, weight=100),), by=by, why=why, action="rollback"
            )
        if now.previous is None:
            raise UnknownReleaseError.of(model, "previous release to return to", [now.champion.release])
        return self._to_champion(model, now, now.previous.release, now.previous.version, "rollback", by, why)

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
    ) -> ReleaseRecord:
        """Commit new traffic if the record is still at `expected_revision` (0 before the first release).

        Raises StaleReleaseError, which names who won, when it is not; InvalidReleaseError when the
        variants are not one champion, at most one challenger, and weights that sum to 100.
        """
        _check(model, variants)
        with self._locked(model):
            now = self.read(model)
            if now and now.revision != expected_revision:
                raise StaleReleaseError.of(model, expected_revision, now)
            if now is None and expected_revision:
                raise UnknownReleaseError.of(model, f"release at revision {expected_revision}", [])
            record = _next(model, now, tuple(variants), by, why, action, tuple(steps), step)
            self._mend_history(model, now)
            _publish(self.path(model), record.to_json())
            self._append_history(model, record.change)
            return record

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

    def _to_champion(
        self, model: str, now: ReleaseRecord | None, release: str, version: str, action: str, by: str, why: str
    ) -> ReleaseRecord:
        revision = now.revision if now else 0
        return self.change(model, revision, (Variant(release, version, 100),), by=by, why=why, action=action)

    def _released(self, model: str) -> ReleaseRecord:
        now = self.read(model)
        if now is None:
            raise UnknownReleaseError.of(model, "release yet", [])
        return now

    def _canary_of(self, model: str) -> tuple[ReleaseRecord, Variant]:
        now = self._released(model)
        if now.challenger is None:
            raise UnknownReleaseError.of(model, "canary running", [_phrase(now.variants)])
        return now, now.challenger

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

    def _mend_history(self, model: str, record: ReleaseRecord | None) -> None:
        """Cut a half-written last line and add the change that a killed writer did not get to."""
        path = self._history_path(model)
        if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
            os.truncate(path, text.rfind(b"\n") + 1)
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        if record and len(self._history(model, record)) > lines:
            self._append_history(model, record.change)

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


def _canary(champion: Variant, release: str, version: str, percent: int) -> tuple[Variant, ...]:
    return replace(champion, weight=100 - percent), Variant(release, version, percent, "challenger")


def _check(model: str, variants: Sequence[Variant]) -> None:
    roles = sorted(variant.role for variant in variants)
    weights = [variant.weight for variant in variants]
    if roles not in (["champion"], ["challenger", "champion"]) or sum(weights) != 100 or min(weights) < 0:
        raise InvalidReleaseError(
            f"{model!r} cannot be released as {_phrase(variants)}. "
            "Give one champion, at most one challenger, and weights that sum to 100."
        )


def _next(
    model: str,
    now: ReleaseRecord | None,
    variants: tuple[Variant, ...],
    by: str,
    why: str,
    action: str,
    steps: tuple[int, ...],
    step: int,
) -> ReleaseRecord:
    revision = now.revision + 1 if now else 1
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    change = Change(revision, at, by, why, action, now.variants if now else (), variants)
    record = ReleaseRecord(model, revision, variants, now.previous if now else None, steps, step, change)
    if now and now.champion.release != record.champion.release:
        return replace(record, previous=replace(now.champion, weight=100))
    return record


def _publish(path: Path, record: dict[str, Any]) -> None:
    """Write beside, flush to disk, rename: a reader sees the old record or the new one, whole."""
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    with beside.open("wb") as file:
        file.write(json.dumps(record, indent=2).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
