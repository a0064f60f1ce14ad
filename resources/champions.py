"""Champions: the registry alias `champion`, moved one promotion at a time, and the history of its moves.

    <root>/<team>/<model>.jsonl    every move, one line each, oldest first

MLflow's alias move is no compare-and-set, so all moves go through a lock of this store. The move is
written down before the alias is set: a process killed between the two leaves a last line that says
where the alias was going, and the next move of the model carries it out or overrules it, in a line of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from resources.environment import home

ALIAS = "champion"
LOCK_SECONDS = 30.0
TURN_SECONDS = 120.0


class Registry(Protocol):
    """What is needed of a model registry; `resources.mlflow.MlflowResource` is one."""

    def alias(self, name: str, alias: str) -> str | None: ...

    def set_alias(self, name: str, alias: str, version: str) -> None: ...


@dataclass(frozen=True)
class ChampionMove:
    """Who or what moved the alias, when, why, from which version to which."""

    at: str
    by: str
    why: str
    before: str | None
    after: str


@dataclass(frozen=True)
class ChampionStore:
    """The histories under `root`; without one, those of MLOPS_HOME, found when used."""

    root: Path | None = None

    def move(
        self, registry: Registry, model: str, name: str, version: str, *, by: str, why: str
    ) -> ChampionMove | None:
        """Make `version` of the registered model `name` the champion; None when it already is.

        `model` is the model's id, `<team>/<name>`.
        """
        with self._held(model, ".lock", LOCK_SECONDS):
            before, told = registry.alias(name, ALIAS), self.history(model)
            if before == version and (not told or told[-1].after == version):
                return None
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            at = max(at, told[-1].at) if told else at  # whatever the clock says, it comes after the one before
            move = ChampionMove(at, by, why, before, version)
            self._append(model, move)
            registry.set_alias(name, ALIAS, version)
            return move

    def turn(self, model: str) -> AbstractContextManager[None]:
        """Held while champion and traffic of a model move together, so that two promotions at once do not mix.

        Not to be taken twice by one caller: it would wait for itself.
        """
        return self._held(model, ".turn.lock", TURN_SECONDS)

    def history(self, model: str) -> list[ChampionMove]:
        """Every move, oldest first."""
        path = self._path(model)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [ChampionMove(**json.loads(line)) for line in lines]

    def _append(self, model: str, move: ChampionMove) -> None:
        path = self._path(model)
        if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
            os.truncate(path, text.rfind(b"\n") + 1)  # half a line: its writer was killed before the alias was set
        with path.open("ab") as file:
            file.write(json.dumps(asdict(move)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _path(self, model: str) -> Path:
        return (self.root or home() / "champions") / f"{model}.jsonl"

    @contextmanager
    def _held(self, model: str, suffix: str, seconds: float) -> Iterator[None]:
        from filelock import FileLock

        path = self._path(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(suffix), timeout=seconds):
            yield
