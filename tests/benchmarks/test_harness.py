"""The harness divides, writes and alternates as it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness import Figure, UnequalResultsError, fresh_home, in_turn, publish, require_equal, table
from resources.environment import PROJECT, environment
from resources.environment import home as home_of_state

times = st.floats(min_value=1e-6, max_value=1e6)


@given(ours=times, peer=times, target=st.one_of(st.none(), times))
def test_a_line_holds_the_ratio_and_the_verdict(ours: float, peer: float, target: float | None):
    """The ratio is ours to the peer's, a target the most that it may be, and no target no verdict."""
    line = json.loads(Figure("join", ours, peer, "polars", target=target).line())
    assert line["ratio"] == pytest.approx(ours / peer)
    assert line["meets"] == (None if target is None else ours / peer <= target)


def test_a_line_has_these_fields_and_no_others():
    line = json.loads(Figure("join", 3.0, 2.0, "polars", target=1.5).line())
    assert line == {
        "name": "join",
        "ours": 3.0,
        "peer": 2.0,
        "peer_name": "polars",
        "unit": "s",
        "ratio": 1.5,
        "target": 1.5,
        "meets": True,
    }


def test_figures_replace_those_of_the_run_before(tmp_path: Path):
    """A line a figure, in the file that is named, and nothing else beside it."""
    publish("join", [Figure("old", 1, 1, "polars")], tmp_path / "benchmarks")
    path = publish("join", [Figure("one", 1, 2, "polars"), Figure("two", 3, 4, "polars")], tmp_path / "benchmarks")
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["one", "two"]
    assert list((tmp_path / "benchmarks").iterdir()) == [path]
    assert path.name == "join.jsonl"


def test_the_sides_take_turns_and_the_median_counts():
    """Every other round the peer goes first; one slow round changes nothing."""
    order: list[str] = []
    ours, peer = iter([1.0, 100.0, 2.0]), iter([4.0, 0.0, 5.0])

    def side(name: str, seconds):
        def taken() -> float:
            order.append(name)
            return next(seconds)

        return taken

    assert in_turn(side("ours", ours), side("peer", peer), rounds=3) == (2.0, 4.0)
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_unequal_sides_are_named_and_not_timed():
    require_equal("the rows", 3, 3)
    with pytest.raises(UnequalResultsError, match=r"the rows is not the same .* ours 3, the peer's 4"):
        require_equal("the rows", 3, 4)


def test_a_fresh_home_is_gone_afterwards(home: Path):
    """The state of a benchmark never mixes with that of its user."""
    with fresh_home() as given_home:
        assert home_of_state() == given_home.resolve() != home
        assert environment() == "local"
    assert home_of_state() == home
    assert not given_home.exists()


def test_the_table_says_whether_a_target_is_met():
    shown = table("join", [Figure("a", 1, 2, "polars", target=2), Figure("b", 5, 2, "polars", target=2)])
    assert list(shown.columns[6].cells) == ["[green]yes[/]", "[red]no[/]"]


def test_an_unknown_benchmark_is_refused_by_name():
    command = [sys.executable, "-m", "benchmarks", "speed"]
    ran = subprocess.run(command, check=False, cwd=PROJECT, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "no benchmark speed (known: definitions_load, " in ran.stderr
