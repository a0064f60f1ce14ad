"""What a release was refused for by this process: remembered, tried once more, then told to the record.

A file that was not there yet deserves a second look; a release that failed twice is broken, and everybody who follows
the record should know. A verdict is about one revision of it: a new one is a new chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from resources.release_record import Refusal

TRIES = 2
RETRY_SECONDS = 1.0
ALONE_SECONDS = 10.0  # until the next try of a process that is alone with its trouble
Name = tuple[str, str]  # model, release


@dataclass
class Failure:
    """Why a release gets no traffic in this process, found at `revision` of its model's record."""

    model: str
    release: str
    revision: int
    reason: str
    action: Refusal = "refused"
    tries: int = 1
    at: float = 0.0
    pause: float = RETRY_SECONDS
    told: bool = False

    @property
    def final(self) -> bool:
        return self.tries >= TRIES

    def due(self, now: float) -> bool:
        """Is it time to try again, or to tell again what could not be told?"""
        return not self.told and now - self.at >= self.pause

    def put_off(self) -> None:
        """It is no verdict on the release: try again after a while, and for as long as it takes."""
        self.tries, self.at, self.pause = 0, monotonic(), ALONE_SECONDS


class Failures:
    """Those of all models."""

    def __init__(self) -> None:
        self._all: dict[Name, Failure] = {}

    def add(self, model: str, release: str, revision: int, reason: str) -> bool:
        """One more try failed; True where it was the first."""
        known = self.of(model, release, revision)
        tries = known.tries + 1 if known else 1
        self._all[model, release] = Failure(model, release, revision, reason, tries=tries, at=monotonic())
        return known is None

    def condemn(self, failure: Failure) -> None:
        """No second try for one that loaded and then failed."""
        failure.tries, failure.at = TRIES, monotonic()
        self._all[failure.model, failure.release] = failure

    def clear(self, model: str, release: str) -> None:
        self._all.pop((model, release), None)

    def forget_older(self, model: str, revision: int) -> None:
        """What was found at another revision is no verdict on this one."""
        for name, failure in list(self._all.items()):
            if failure.model == model and failure.revision != revision:
                self._all.pop(name, None)

    def of(self, model: str, release: str, revision: int) -> Failure | None:
        failure = self._all.get((model, release))
        return failure if failure and failure.revision == revision else None

    def bars(self, model: str, release: str, revision: int) -> bool:
        """Is there no point in loading it now?"""
        failure = self.of(model, release, revision)
        return failure is not None and (failure.final or not failure.due(monotonic()))

    def reasons(self, model: str, revision: int) -> dict[str, str]:
        """By release, why it gets no traffic."""
        return {
            one.release: one.reason
            for one in list(self._all.values())
            if (one.model, one.revision) == (model, revision)
        }

    def due(self) -> list[Failure]:
        """Those to try, or to tell, again."""
        now = monotonic()
        return [failure for failure in list(self._all.values()) if failure.due(now)]

    def to_tell(self, model: str) -> list[Failure]:
        """The verdicts on a model's releases that its record does not know yet."""
        return [one for one in list(self._all.values()) if one.model == model and one.final and not one.told]
