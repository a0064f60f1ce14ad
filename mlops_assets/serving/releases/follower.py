"""Keeps a process at what the release records say.

One thread looks at the records every 0.2 s and judges canaries; another loads what is new beside what is serving. A
release that loaded and answered its golden rows takes its place in one assignment; one that does not gets no traffic,
and after a second try the record is told. The rule that must never break: traffic only ever goes to a release that
proved itself, and while the new one does not, the old one serves on.

Under a memory budget (`memory`) the models that were not asked for the longest time are put to sleep: their releases
are forgotten, and read again when somebody asks.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from mlops_assets.serving import metrics
from mlops_assets.serving.releases import Served
from mlops_assets.serving.releases.breaker import CanaryBreaker
from mlops_assets.serving.releases.failures import Failure, Failures
from mlops_assets.serving.releases.memory import Shelf, memory_budget
from mlops_assets.serving.releases.shadow import Shadow
from mlops_assets.serving.releases.status_files import StatusFiles
from mlops_assets.serving.releases.traffic import Traffic
from resources.release_record import Limits, ReleaseRecord
from resources.releases import MODEL_ID, CorruptReleaseError, ReleaseStore
from resources.serving_status import host, statuses

POLL_SECONDS = 0.2
SWITCH_SECONDS = 0.0005
CLOSE_SECONDS = 5.0  # a load in progress is not waited for longer
Stamp = tuple[int, int, int]
logger = logging.getLogger(__name__)


class FollowedReleases:
    """Every model that has a record, or only `names`; `bundle_of` finds the bundle of a Bento tag.

    `budget` is the bytes that releases may take together; without one, what MLOPS_ENDPOINT_MEMORY says.
    """

    def __init__(
        self,
        records: ReleaseStore,
        bundle_of: Callable[[str], Path],
        names: Sequence[str] = (),
        budget: int | None = None,
    ) -> None:
        self._records = records
        self._bundle_of = bundle_of
        self._names = list(names)
        self._shelf = Shelf(bundle_of, memory_budget() if budget is None else budget)
        self._failures = Failures()
        self._seen: dict[str, Stamp] = {}
        self._newest: dict[str, ReleaseRecord] = {}
        self._served: dict[str, Served] = {}
        self._unreadable: dict[str, str] = {}
        self._asleep: set[str] = set()
        self._proved: set[str] = set()  # releases that loaded once: a model that sleeps may have followed them
        self._used: dict[str, float] = {}
        self._state = threading.RLock()  # of what a model is served by; nothing is loaded under it
        self._bringing = threading.Lock()  # of what is in memory: one load at a time
        self._jobs: SimpleQueue[str | None] = SimpleQueue()
        self._closing = threading.Event()
        self._status = StatusFiles(records.path)
        self._start()

    def _start(self) -> None:
        self._look()
        while not self._jobs.empty():
            self._bring(str(self._jobs.get()))
        self._tell()
        self._loader = threading.Thread(target=self._load_all, name="releases-loader", daemon=True)
        self._loader.start()
        self._thread = threading.Thread(target=self._run, name="releases", daemon=True)
        self._thread.start()

    def served(self, model: str) -> Served | None:
        """What a model answers with, for a request: it was used now."""
        served = self._served.get(model)
        if served is None:
            return self.peek(model)
        self._used[model] = time.monotonic()
        return served

    def peek(self, model: str) -> Served | None:
        """The same for somebody who only looks."""
        return self._served.get(model) or (Served(model) if model in self._names else None)

    def wake(self, model: str) -> Served:
        """The model with its releases in memory; waits while they load."""
        with self._bringing:
            served = self._served[model]
            if not served.asleep:  # another request woke it meanwhile
                return served
            metrics.WAKES.labels(model).inc()
            return self._bring_alone(model)

    def models(self) -> list[str]:
        return sorted({*self._names, *self._served})

    def not_ready(self) -> list[str]:
        """The models with a record and nothing to answer with, all of them once nobody follows any more."""
        if not (self._thread.is_alive() and self._loader.is_alive()):
            return self.models()
        served = list(self._served.values())
        return [one.model for one in served if one.traffic is None and not one.asleep]

    def close(self) -> None:
        self._closing.set()
        self._jobs.put(None)
        self._thread.join(CLOSE_SECONDS)
        self._loader.join(CLOSE_SECONDS)
        for served in self._served.values():
            if served.shadow is not None:
                served.shadow.close()
        self._status.close()

    # The thread that follows.

    def _run(self) -> None:
        while not self._closing.wait(POLL_SECONDS):
            self._look()
            self._judge()
            for model in {failure.model for failure in self._failures.due()}:
                self._jobs.put(model)
            self._tell()

    def _look(self) -> None:
        """Follow each record that changed since it was last looked at."""
        try:
            for model, stamp in self._stamps():
                if stamp != self._seen.get(model):
                    self._follow(model)
                    self._seen[model] = stamp
        except OSError as error:  # the disk that they lie on may come back; what serves goes on
            logger.warning("the release records cannot be read: %s", error)

    def _follow(self, model: str) -> None:
        try:
            record = self._records.read(model)
        except CorruptReleaseError as error:
            self._unreadable[model] = str(error)
            with self._state:
                now = self._served.get(model) or Served(model)
                self._served[model] = replace(now, refused={**now.refused, "record": str(error)})
            return
        if record is None:
            return
        self._unreadable.pop(model, None)
        self._failures.forget_older(model, record.revision)
        with self._state:
            self._newest[model] = record
            if model in self._served or not self._missing(model):
                self._settle(model)  # at once what needs no loading: who loses traffic loses it now
        self._jobs.put(model)

    def _judge(self) -> None:
        """Take out canaries that broke their limits, and shadows that died."""
        for model, served in list(self._served.items()):
            if served.breaker is None and served.shadow is None:
                continue
            record = self._newest[model]
            if served.breaker and record.canary and (why := served.breaker.judge()):
                metrics.BREAKER_TRIPS.labels(model, record.canary.release).inc()
                self._condemn(Failure(model, record.canary.release, record.revision, why, "circuit breaker"))
            if served.shadow and served.shadow.failure:
                metrics.REFUSALS.labels(model, served.shadow.variant.release).inc()
                self._condemn(Failure(model, served.shadow.variant.release, record.revision, served.shadow.failure))

    def _condemn(self, failure: Failure) -> None:
        """Here at once, whoever else may be slow to hear of it."""
        logger.warning("release %s is taken out: %s", failure.release, failure.reason)
        self._failures.condemn(failure)
        with self._state:
            served = self._settle(failure.model)
        self._report(served)

    def _tell(self) -> None:
        self._status.tell(list(self._served.values()))

    def _stamps(self) -> Iterator[tuple[str, Stamp]]:
        """Every record, with what changes whenever it is replaced."""
        if self._names:
            for model in self._names:
                try:
                    yield model, _stamp(self._records.path(model).stat())
                except FileNotFoundError:
                    continue
            return
        for team in _entries(self._records.path("a/a").parents[1]):
            for file in _entries(team.path) if team.is_dir() else ():
                model = f"{team.name}/{file.name.removesuffix('.json')}"
                if file.name.endswith(".json") and MODEL_ID.fullmatch(model):
                    yield model, _stamp(file.stat())

    # The thread that loads, and requests that wake a model.

    def _load_all(self) -> None:
        while (model := self._jobs.get()) is not None and not self._closing.is_set():
            self._bring(model)

    def _bring(self, model: str) -> None:
        """A model that sleeps is woken only to prove a release that it never had."""
        with self._bringing:
            if model not in self._asleep or self._pending(model, self._newest[model]):
                self._bring_alone(model)

    def _bring_alone(self, model: str) -> Served:
        """Load what the newest record names and is not in memory, and let it take its place."""
        while missing := self._missing(model):
            for tag in missing:
                with yielding():
                    self._load(model, tag)
            self._used[model] = time.monotonic()
        with self._state:
            self._asleep.discard(model)
            served = self._settle(model)
        self._report(served)
        self._forget(standby=True)
        self._make_room(model)
        return served

    def _missing(self, model: str) -> list[str]:
        """What to load now: those that answer, and for a champion that does not, the one before."""
        with self._state:
            record, served = self._newest[model], self._served.get(model)
            wanted = [variant.release for variant in record.answering]
            alone = served is None or served.traffic is None
            if alone and record.previous and self._failures.of(model, record.champion.release, record.revision):
                wanted.append(record.previous.release)
            here = (tag for tag in wanted if self._shelf.get(tag, model) is None)
            return [tag for tag in here if not self._failures.bars(model, tag, record.revision)]

    def _load(self, model: str, tag: str) -> None:
        revision = self._newest[model].revision
        try:
            self._shelf.load(tag, model)
        # A broken model fails in whatever way its library fails; any of them must leave the old one serving.
        except Exception as error:
            logger.warning("release %s is refused", tag, exc_info=True)
            if self._failures.add(model, tag, revision, f"{type(error).__name__}: {error}"):
                metrics.REFUSALS.labels(model, tag).inc()
        else:
            self._failures.clear(model, tag)
            self._proved.add(tag)

    def _report(self, served: Served) -> None:
        """Make the record tell the truth about what failed for good.

        Not where nothing of the model works in this process, or where the release answers in another one: then it is
        this process that is broken, and everybody would lose a good release to it. It tries again now and then.
        """
        for failure in self._failures.to_tell(served.model):
            if served.traffic is None or (failure.action == "refused" and self._answers_elsewhere(failure)):
                failure.put_off()
                continue
            by = f"serving process {host()}-{os.getpid()}"
            try:
                self._records.refuse(
                    failure.model, failure.revision, failure.release, by=by, why=failure.reason, action=failure.action
                )
            except (OSError, ValueError) as error:  # a disk that is read-only or full, a lock, a record broken by hand
                failure.at = time.monotonic()
                logger.warning("nobody was told that %s is refused: %s", failure.release, error)
            else:
                failure.told = True

    def _answers_elsewhere(self, failure: Failure) -> bool:
        me = f"{host()}-{os.getpid()}"
        others = [one for one in statuses(self._records.path(failure.model)) if one.process != me]
        return any(variant["release"] == failure.release for one in others for variant in one.serving)

    def _forget(self, *, standby: bool) -> None:
        """Keep what serves, what is to serve, and (on standby) what a rollback returns to."""
        with self._state:
            kept = set()
            for model, served in self._served.items():
                if model in self._asleep:
                    continue
                record = self._newest.get(model)
                kept |= {variant.release for variant, _ in served.traffic.shares} if served.traffic else set()
                kept |= {variant.release for variant in record.answering} if record else set()
                kept |= {record.previous.release} if standby and record and record.previous else set()
            self._shelf.forget(self._shelf.tags() - kept)

    def _make_room(self, woken: str) -> None:
        """Over the budget, first what is on standby goes, then the models that were not asked the longest."""
        if self._shelf.over:
            self._forget(standby=False)
        while self._shelf.over and (models := [m for m, s in list(self._served.items()) if s.traffic and m != woken]):
            self._put_to_sleep(min(models, key=lambda model: self._used.get(model, 0.0)))

    def _put_to_sleep(self, model: str) -> None:
        """Requests that it is answering now keep what they hold."""
        metrics.SLEEPS.labels(model).inc()
        with self._state:
            self._asleep.add(model)
            self._settle(model)
        self._forget(standby=False)

    # What a model is served by, of what is in memory. Under `_state`.

    def _settle(self, model: str) -> Served:
        record, now = self._newest[model], self._served.get(model) or Served(model)
        asleep = model in self._asleep
        traffic = None if asleep else self._traffic(model, record) or self._stand_in(record, now)
        followed = now.record if self._pending(model, record) else record
        served = self._served[model] = Served(
            model,
            traffic,
            followed,
            {**self._failures.reasons(model, record.revision), **_refused_by(record), **self._unread(model)},
            asleep,
            _breaker(record, now, traffic),
            self._shadow(record, now),
        )
        return served

    def _traffic(self, model: str, record: ReleaseRecord) -> Traffic | None:
        """The variants that are in memory and did not fail, the champion with what is left; without it none."""
        ready = {
            variant: release
            for variant in record.answering
            if (release := self._shelf.get(variant.release, model)) is not None
            and not self._failures.of(model, variant.release, record.revision)
        }
        if record.champion not in ready:
            return None
        challengers = [share for share in ready.items() if share[0].role == "challenger"]
        left = 100 - sum(variant.weight for variant, _ in challengers)
        return Traffic((*challengers, (replace(record.champion, weight=left), ready[record.champion])))

    def _stand_in(self, record: ReleaseRecord, now: Served) -> Traffic | None:
        """While a champion loads or is broken: the one that serves; in a process that starts, the one before."""
        if now.traffic is not None:
            variant, serving = now.traffic.shares[-1]
            return Traffic(((replace(variant, weight=100), serving),))
        before = record.previous
        release = self._shelf.get(before.release, record.model) if before else None
        return Traffic(((before, release),)) if before and release else None

    def _pending(self, model: str, record: ReleaseRecord) -> bool:
        """Is there a release that was neither loaded nor refused yet?"""
        tags = [variant.release for variant in record.answering]
        absent = [tag for tag in tags if self._shelf.get(tag, model) is None]
        if model in self._asleep:
            absent = [tag for tag in absent if tag not in self._proved]
        return any(self._failures.of(model, tag, record.revision) is None for tag in absent)

    def _unread(self, model: str) -> dict[str, str]:
        return {"record": self._unreadable[model]} if model in self._unreadable else {}

    def _shadow(self, record: ReleaseRecord, now: Served) -> Shadow | None:
        """The one that there is, if it is still the record's; else a new one, or none."""
        wanted = record.shadow
        if now.shadow is not None:
            if now.shadow.variant == wanted:
                return now.shadow
            now.shadow.retire()
        if wanted is None or self._failures.of(record.model, wanted.release, record.revision):
            return None
        try:
            return Shadow(record.model, wanted, self._bundle_of(wanted.release))
        except (LookupError, OSError) as error:  # no such Bento
            logger.warning("shadow %s is refused: %s", wanted.release, error)
            self._failures.condemn(Failure(record.model, wanted.release, record.revision, str(error)))
            return None


def _breaker(record: ReleaseRecord, now: Served, traffic: Traffic | None) -> CanaryBreaker | None:
    """Of a canary that has traffic: the one that watches this step already, or a new one."""
    if record.canary is None or traffic is None or len(traffic.shares) == 1:
        return None
    if now.breaker is not None and now.record is not None and now.record.began == record.began:
        return now.breaker
    return CanaryBreaker(record.limits or Limits())


def _refused_by(record: ReleaseRecord) -> dict[str, str]:
    """What the last change took out, whichever process it was."""
    return {variant.release: record.why for variant in record.change.refused}


@contextmanager
def yielding() -> Iterator[None]:
    """A block whose thread gives the interpreter back within half a millisecond when another one waits for it.

    An event loop loses it with every read of a socket; by default it would get it back after 5 ms, every time.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _entries(directory: str | Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as found:
            yield from found
    except FileNotFoundError:
        return


def _stamp(stat: os.stat_result) -> Stamp:
    """The inode tells two writes within one clock tick apart."""
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
