"""Champions: one move at a time, each written down before it is made, whoever is killed in between."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.champions import ChampionStore
from resources.environment import PROJECT

MODEL, NAME = "flights/late_arrival", "flights.late_arrival"


class KilledError(BaseException):
    """What a process that is killed does not catch."""


@dataclass
class Registry:
    """An alias that several threads share, slow enough for them to meet; it may be killed instead of moved."""

    version: str | None = None
    kills: bool = False
    pause: float = 0.0
    moves: list[str] = field(default_factory=list)

    def alias(self, name: str, alias: str) -> str | None:
        assert (name, alias) == (NAME, "champion")
        found = self.version
        time.sleep(self.pause)
        return found

    def set_alias(self, name: str, alias: str, version: str) -> None:
        if self.kills:
            raise KilledError
        self.version = version
        self.moves.append(version)


@pytest.fixture
def store(tmp_path: Path) -> ChampionStore:
    return ChampionStore(tmp_path)


def move(store: ChampionStore, registry: Registry, version: str, by: str = "ann", why: str = "better"):
    return store.move(registry, MODEL, NAME, version, by=by, why=why)


def test_a_move_is_made_and_written_down(store: ChampionStore):
    """Who, when, why, from which version, to which; oldest first."""
    registry = Registry()
    move(store, registry, "1", by="run 7", why="passed its gate")
    made = move(store, registry, "2")
    first, second = store.history(MODEL)
    assert (first.before, first.after, first.by, first.why) == (None, "1", "run 7", "passed its gate")
    assert (second, second.before, second.after, registry.version) == (made, "1", "2", "2")
    assert first.at <= second.at and first.at.endswith("+00:00")


def test_a_move_to_where_the_alias_is_changes_nothing(store: ChampionStore):
    """So that a repeated run is harmless."""
    registry = Registry()
    move(store, registry, "1")
    assert move(store, registry, "1") is None
    assert len(store.history(MODEL)) == 1


def test_a_model_without_moves_has_an_empty_history(store: ChampionStore):
    assert store.history("flights/unknown") == []


def test_without_a_root_the_histories_are_those_of_the_home(home: Path):
    """Found when used, so that the store can be made before the environment is known."""
    move(ChampionStore(), Registry(), "1")
    assert [path.name for path in (home / "champions" / "flights").glob("*.jsonl")] == ["late_arrival.jsonl"]


def test_moves_at_once_are_made_one_after_the_other(store: ChampionStore):
    """Of eight threads each starts from where the one before it left the alias."""
    registry = Registry(pause=0.002)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda version: move(store, registry, str(version)), range(24)))
    history = store.history(MODEL)
    assert len(history) == 24 and history[0].before is None
    assert all(one.after == other.before for one, other in pairwise(history))
    assert [line.after for line in history] == registry.moves


PROCESS = """
import sys
from pathlib import Path
from resources.champions import ChampionStore

class Registry:
    path = Path(sys.argv[1], "alias")
    def alias(self, name, alias): return self.path.read_text() if self.path.exists() else None
    def set_alias(self, name, alias, version): self.path.write_text(version)

store = ChampionStore(Path(sys.argv[1]))
for number in range(10):
    store.move(Registry(), "flights/late_arrival", "n", f"{sys.argv[2]}-{number}", by="p", why="w")
"""


def test_processes_move_one_after_the_other(store: ChampionStore, tmp_path: Path):
    """A command beside a run: no move is lost, none starts from a state that never was."""
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), str(number)], cwd=PROJECT)
        for number in range(4)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0, 0]
    history = store.history(MODEL)
    assert len(history) == 40
    assert all(one.after == other.before for one, other in pairwise(history))
    assert history[-1].after == (tmp_path / "alias").read_text()


def test_a_turn_is_one_callers_and_given_back(store: ChampionStore):
    """Two promotions never overlap, in any of their steps; other models do not wait; an error gives the turn back."""
    inside: list[str] = []

    def promote(name: str) -> None:
        with store.turn(MODEL), store.turn("flights/another_" + name):
            inside.append(name)
            time.sleep(0.01)
            assert inside.pop() == name and not inside

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(promote, "abcd"))
    with pytest.raises(ZeroDivisionError), store.turn(MODEL):
        _ = 1 / 0
    with store.turn(MODEL):
        assert inside == []


# -- kills ---------------------------------------------------------------------------------------


def killed_between_log_and_alias(store: ChampionStore) -> Registry:
    registry = Registry()
    move(store, registry, "1")
    registry.kills = True
    with pytest.raises(KilledError):
        move(store, registry, "2", by="the killed one")
    registry.kills = False
    return registry


def test_a_move_that_was_killed_is_carried_out_by_the_next(store: ChampionStore):
    """The last line says where the alias was going; asking again takes it there."""
    registry = killed_between_log_and_alias(store)
    assert (registry.version, store.history(MODEL)[-1].after) == ("1", "2")
    assert move(store, registry, "2") is not None
    assert (registry.version, store.history(MODEL)[-1].after) == ("2", "2")


def test_a_move_that_was_killed_is_overruled_visibly(store: ChampionStore):
    """Asking for the version that the alias never left is no move, but the history must not end with another one."""
    registry = killed_between_log_and_alias(store)
    move(store, registry, "1", why="stays")
    assert [(line.before, line.after) for line in store.history(MODEL)] == [(None, "1"), ("1", "2"), ("1", "1")]
    assert store.history(MODEL)[-1].why == "stays"
    assert move(store, registry, "1") is None


def test_half_a_line_is_no_move(store: ChampionStore, tmp_path: Path):
    """Killed while it wrote: the alias was not touched yet, readers see no move, and the next writer cuts it off."""
    registry = Registry()
    move(store, registry, "1")
    path = tmp_path / f"{MODEL}.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at": "2024-01-01T00:0')
    assert [line.after for line in store.history(MODEL)] == ["1"]
    move(store, registry, "2")
    assert [line.after for line in store.history(MODEL)] == ["1", "2"]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("123"), st.booleans()), min_size=1, max_size=8))
def test_after_any_moves_and_kills_the_next_whole_move_puts_things_right(steps: list[tuple[str, bool]]):
    """History and alias agree after every move that was not killed, and no line is ever taken back."""
    with TemporaryDirectory() as directory:
        store, registry, before = ChampionStore(Path(directory)), Registry(), []
        for version, kills in steps:
            registry.kills = kills
            try:
                move(store, registry, version)
            except KilledError:
                assert kills
            else:
                assert registry.version == version
                assert store.history(MODEL)[-1].after == version
            history = store.history(MODEL)
            assert history[: len(before)] == before
            before = history
