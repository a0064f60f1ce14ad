"""The releases a process answers with, kept at what the release records say.

A thread looks at the records every 0.2 s; what changed is loaded, checked and warmed beside what is
serving, then takes its place in one assignment. The rule that must never break: traffic only ever goes
to a release that loaded and answered its golden rows; while the new one does not, the old one serves on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from mlops_assets.serving.breaker import CanaryBreaker
from mlops_assets.serving.bundle import BrokenBundleError, Release
from mlops_assets.serving.shadow import Shadow
from mlops_assets.serving.traffic import Traffic, bucket_of
from resources.releases import CorruptReleaseError, ReleaseRecord, ReleaseStore, Variant

__all__ = ["FollowedReleases", "OneRelease", "Releases", "Served", "Traffic", "bucket_of"]
POLL_SECONDS = 0.2
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """What one model answers with now. `refused` says, by Bento, why a release gets no traffic.

    A model that is `asleep` has no traffic until it is woken. `breaker` and `shadow` are there while a record names a
    canary and a shadow.
    """

    model: str
    traffic: Traffic | None = None
    record: ReleaseRecord | None = None
    refused: dict[str, str] = field(default_factory=dict)
    asleep: bool = False
    breaker: CanaryBreaker | None = None
    shadow: Shadow | None = None

    def to_json(self) -> dict[str, Any]:
        """The state that GET /<team>/<model>/release shows."""
        record, shares = self.record, self.traffic.shares if self.traffic else ()
        return {
            "model": self.model,
            "revision": record.revision if record else None,
            "serving": [asdict(variant) for variant, _ in shares],
            "asleep": self.asleep,
            "record": record.to_json() if record else None,
            "refused": [{"release": tag, "reason": reason} for tag, reason in self.refused.items()],
        }


class Releases(Protocol):
    """Where the answering process finds what it serves."""

    def served(self, model: str) -> Served | None: ...
    def wake(self, model: str, /) -> Served: ...
    def models(self) -> list[str]: ...
    def not_ready(self) -> list[str]: ...
    def close(self) -> None: ...


class OneRelease:
    """A Bento that serves its own bundle and nothing else."""

    def __init__(self, release: Release, tag: str, version: str) -> None:
        self._served = Served(release.model, Traffic(((Variant(tag, version, 100), release),)))

    def served(self, model: str) -> Served | None:
        return self._served if model == self._served.model else None

    def wake(self, _: str) -> Served:
        return self._served

    def models(self) -> list[str]:
        return [self._served.model]

    def not_ready(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


class FollowedReleases:
    """Every model that has a record, or only `names`; `bundle_of` finds the bundle of a Bento tag."""

    def __init__(self, records: ReleaseStore, bundle_of: Callable[[str], Path], names: Sequence[str] = ()) -> None:
        self._records = records
        self._bundle_of = bundle_of
        self._names = list(names)
        self._seen: dict[str, tuple[int, ...]] = {}
        self._served: dict[str, Served] = {}
        self._loaded: dict[str, Release] = {}
        self._closing = threading.Event()
        self.refresh()
        self._thread = threading.Thread(target=self._run, name="releases", daemon=True)
        self._thread.start()

    def served(self, model: str) -> Served | None:
        return self._served.get(model) or (Served(model) if model in self._names else None)

    def wake(self, model: str) -> Served:
        """The model with its releases in memory; blocks while they load."""
        return self._served[model]

    def models(self) -> list[str]:
        return sorted({*self._names, *self._served})

    def not_ready(self) -> list[str]:
        """The models with a record and nothing to answer with, all of them once the follower has died."""
        if not self._thread.is_alive():
            return self.models()
        return [model for model, served in self._served.items() if served.traffic is None]

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def refresh(self) -> None:
        """Follow each record that changed since it was last looked at."""
        for model in self._names or self._records.models():
            stamp = _stamp(self._records.path(model))
            if stamp and stamp != self._seen.get(model):
                self._served[model] = self._follow(model, self._served.get(model) or Served(model))
                self._seen[model] = stamp
                self._forget_unused()

    def _run(self) -> None:
        while not self._closing.wait(POLL_SECONDS):
            self.refresh()

    def _follow(self, model: str, now: Served) -> Served:
        try:
            record = self._records.read(model)
        except CorruptReleaseError as error:
            return replace(now, refused={"record": str(error)})
        if record is None:
            return now
        refused: dict[str, str] = {}
        shares = list(self._shares(model, record.variants, refused))
        if not any(variant.role == "champion" for variant, _ in shares):
            return Served(model, now.traffic or self._fall_back(record, refused), record, refused)
        shares.sort(key=lambda share: share[0].role == "champion")
        return Served(model, Traffic(tuple(shares)), record, refused)

    def _fall_back(self, record: ReleaseRecord, refused: dict[str, str]) -> Traffic | None:
        """A process that starts on a broken champion serves the one before it, as one that was running does."""
        shares = tuple(self._shares(record.model, [record.previous] if record.previous else [], refused))
        return Traffic(shares) if shares else None

    def _shares(
        self, model: str, variants: Sequence[Variant], refused: dict[str, str]
    ) -> Iterator[tuple[Variant, Release]]:
        """The variants that load; the reason of each that does not goes into `refused`."""
        for variant in variants:
            try:
                yield variant, self._release(model, variant.release)
            # A broken model fails in whatever way its library fails; any of them must leave the old one serving.
            except Exception as error:
                logger.warning("release %s is refused", variant.release, exc_info=True)
                refused[variant.release] = f"{type(error).__name__}: {error}"

    def _release(self, model: str, tag: str) -> Release:
        """From memory when it was loaded before: a Bento never changes."""
        if tag not in self._loaded:
            self._loaded[tag] = Release.load(self._bundle_of(tag))
        release = self._loaded[tag]
        if release.model != model:
            raise BrokenBundleError.of(self._bundle_of(tag), "plan.json", f"it is of {release.model!r}, not {model!r}")
        return release

    def _forget_unused(self) -> None:
        """Keep what serves and what a rollback would return to; the rest gives its memory back."""
        kept = set()
        for served in self._served.values():
            kept |= {variant.release for variant, _ in served.traffic.shares} if served.traffic else set()
            kept |= {served.record.previous.release} if served.record and served.record.previous else set()
        for tag in self._loaded.keys() - kept:
            del self._loaded[tag]


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Changes whenever the record is replaced; the inode tells two writes within one clock tick apart."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
