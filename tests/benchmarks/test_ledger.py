"""Every moment is charged once, to the innermost account that is open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.demo_books import ASSETS, charging_runs
from benchmarks.ledger import REST, Ledger
from benchmarks.orchestration_overhead import by_part, figures, name_of, step_of

names = st.sampled_from(["work", "imports", "events"])
moves = st.lists(st.tuples(st.sampled_from(["open", "close", "wait"]), names, st.integers(0, 100)), max_size=40)


@dataclass
class Clock:
    """Time that passes only when it is told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@given(moves)
def test_the_accounts_add_up_to_the_time_that_passed(steps: list[tuple[str, str, int]]):
    clock = Clock()
    ledger, opened = Ledger(clock), []
    for step, name, seconds in steps:
        if step == "open":
            opened.append(ledger.charge(name))
            opened[-1].__enter__()
        elif step == "close" and opened:
            opened.pop().__exit__(None, None, None)
        else:
            clock.now += seconds
    ledger.settle()
    assert sum(ledger.spent.values()) == clock.now


def test_an_inner_account_takes_its_time_from_the_outer():
    clock = Clock()
    ledger = Ledger(clock)
    with ledger.charge("work"):
        clock.now += 1
        with ledger.charge("imports"), ledger.charge("imports"):
            clock.now += 2
        clock.now += 4
    clock.now += 8
    ledger.settle()
    assert dict(ledger.spent) == {("work",): 5, ("work", "imports"): 2, (REST,): 8}


def test_a_generator_is_charged_only_while_it_works():
    """What its reader does between two values is the reader's."""
    clock = Clock()
    ledger = Ledger(clock)

    def rows() -> Iterator[int]:
        for number in range(3):
            clock.now += 1
            yield number

    for _ in ledger.charging("work", rows)():
        clock.now += 10
    ledger.settle()
    assert ledger.spent[("work",)] == 3
    assert ledger.spent[(REST,)] == 30


def test_another_thread_opens_no_account():
    clock = Clock()
    ledger = Ledger(clock)

    def elsewhere() -> None:
        with ledger.charge("work"):
            clock.now += 5

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    ledger.settle()
    assert dict(ledger.spent) == {(REST,): 5}


def test_the_function_of_an_asset_is_work_and_the_run_around_it_is_not():
    """Through a real run: the asset's own seconds, not those that pass while Dagster handles what it yielded."""
    clock = Clock()
    ledger = Ledger(clock)

    @dg.asset
    def counted() -> Iterator[dg.Output[int]]:
        clock.now += 7
        yield dg.Output(1)

    @dg.asset
    def doubled(counted: int) -> int:
        clock.now += 3
        return 2 * counted

    class Slow(dg.InMemoryIOManager):
        """Another IO manager than the lake's: its time is not ours to call work."""

        def handle_output(self, context: dg.OutputContext, obj: object) -> None:
            clock.now += 100
            super().handle_output(context, obj)

    with charging_runs(ledger):
        assert dg.materialize([counted, doubled], resources={"io_manager": Slow()}).success
    ledger.settle()
    assert ledger.spent[(ASSETS,)] == 10
    assert ledger.spent[(REST,)] == 200


def test_parts_and_figures_follow_from_the_books():
    """Orchestration is what is neither work nor simulation; a step's name changes nothing."""
    books = {
        ("Train", ASSETS): 60.0,
        ("Train", ASSETS, "imports"): 10.0,
        ("Train",): 5.0,
        ("Train", "event log"): 10.0,
        ("imports",): 5.0,
        ("Replay", "requests and stream"): 10.0,
    }
    assert by_part(books) == {"work": 70.0, "simulation": 10.0, "orchestration": 20.0}
    share, literal = figures(books)
    assert share.ratio == pytest.approx(20 / 90)
    assert literal.ratio == pytest.approx(30 / 100)
    assert name_of(("Train", ASSETS, "imports")) == ASSETS
    assert [step_of(account) for account in [("Train",), ("Train", ASSETS)]] == ["Train", "Train"]
    assert step_of(("imports",)) == step_of((REST,))
