"""Work for processes of their own, by name: what several do at once, and what one does in a bad place."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Platform


class Cramped:
    """The work where no file may grow beyond so many bytes, as on a full disk; whether it succeeded is its own."""

    def __init__(self, work: Any, limit: int) -> None:
        self.work, self.limit = work, limit

    def __call__(self, platform: Platform) -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error of the write instead of the end of the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))
        return self.work(platform)


class Told:
    """The work, and what it returned or refused written to a file as JSON, once all who wait for `go` may go."""

    def __init__(self, work: Callable[[Platform], Any], note: Path, go: Path) -> None:
        self.work, self.note, self.go = work, note, go

    def __call__(self, platform: Platform) -> None:
        platform.defs  # noqa: B018  made before the start, so that all begin at once
        self.note.with_suffix(".ready").touch()
        while not self.go.exists():
            pass
        self.note.write_text(json.dumps(self.work(platform)))


class Ticks:
    """A sensor, ticked so often by a daemon that keeps no cursor; the keys of the runs that it asked for."""

    def __init__(self, sensor: str, times: int) -> None:
        self.sensor, self.times = sensor, times

    def __call__(self, platform: Platform) -> list[str | None]:
        found = []
        for _ in range(self.times):
            platform.cursors.clear()
            found += [request.run_key for request in platform.tick(self.sensor).run_requests or []]
        return found


class Moves:
    """Promotions of versions in turn, as a person types them; how many of them another one overtook."""

    def __init__(self, versions: list[str]) -> None:
        self.versions = versions

    def __call__(self, platform: Platform) -> int:
        from resources.releases import StaleReleaseError

        done = 0
        for version in self.versions:
            with suppress(StaleReleaseError):
                platform.promotion.promote(platform.model, version, by=f"process {os.getpid()}", why=f"to {version}")
                done += 1
        return len(self.versions) - done


class Chain:
    """Champion, Bento and endpoint, as a training run materializes them; whether each of them succeeded."""

    def __call__(self, platform: Platform) -> list[bool]:
        return [platform.run(link).ok for link in ("champion", "bento", "endpoint")]
