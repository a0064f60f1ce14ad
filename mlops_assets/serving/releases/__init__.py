"""What a process answers with: a model's releases, their shares of its traffic, and why one has none.

`follower` keeps it at what the release records say; a Bento that is served by itself answers with what it carries.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from mlops_assets.serving.bundle import Release
from mlops_assets.serving.releases.breaker import CanaryBreaker
from mlops_assets.serving.releases.shadow import Shadow
from mlops_assets.serving.releases.traffic import Traffic
from resources.release_record import ReleaseRecord, Variant


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

    def status(self) -> dict[str, Any]:
        """What this process does with the model, as others are told: the revision that it has followed, and how."""
        shares = self.traffic.shares if self.traffic else ()
        shadow = (self.shadow.variant,) if self.shadow else ()
        return {
            "model": self.model,
            "revision": self.record.revision if self.record else None,
            "serving": [asdict(variant) for variant in (*(variant for variant, _ in shares), *shadow)],
            "asleep": self.asleep,
            "refused": [{"release": tag, "reason": reason} for tag, reason in self.refused.items()],
        }

    def to_json(self) -> dict[str, Any]:
        """The state that GET /<team>/<model>/release shows."""
        return {**self.status(), "record": self.record.to_json() if self.record else None}


class Releases(Protocol):
    """Where the answering process finds what it serves."""

    def served(self, model: str) -> Served | None:
        """For a request: the model was used now."""
        ...

    def peek(self, model: str) -> Served | None:
        """For somebody who only looks."""
        ...

    def wake(self, model: str, /) -> Served:
        """A model that sleeps, awake; waits while its releases load."""
        ...

    def models(self) -> list[str]: ...
    def not_ready(self) -> list[str]: ...
    def close(self) -> None: ...


class OneRelease:
    """A Bento that serves its own bundle and nothing else."""

    def __init__(self, release: Release, tag: str, version: str) -> None:
        self._served = Served(release.model, Traffic(((Variant(tag, version, 100), release),)))

    def served(self, model: str) -> Served | None:
        return self._served if model == self._served.model else None

    def peek(self, model: str) -> Served | None:
        return self.served(model)

    def wake(self, _: str) -> Served:
        return self._served

    def models(self) -> list[str]:
        return [self._served.model]

    def not_ready(self) -> list[str]:
        return []

    def close(self) -> None:
        pass
