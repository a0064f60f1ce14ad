"""The packed store is a dict in which the newest event wins, in SQLite and in Redis alike."""

from __future__ import annotations

import pickle
import sqlite3
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resources.online.packed_store import (
    OnlineStoreUnavailableError,
    PackedStore,
    SqlitePackedStore,
    TableNameError,
    TableRead,
    UnknownStoreError,
    online_store_url,
)

VIEW = "flights__weather"


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'packed.db'}" if request.param == "sqlite" else request.getfixturevalue("redis_url")


@pytest.fixture
def store(url: str) -> Iterator[PackedStore]:
    opened = PackedStore.open(url)
    yield opened
    opened.close()


keys = st.tuples(st.sampled_from(["EWR", "JFK", "Ω"]), st.sampled_from([1, 2]))
times = st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1), st.integers(2**53, 2**53 + 3))
features = st.dictionaries(
    st.sampled_from(["temp", "precip"]), st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=3))
)
batches = st.lists(st.lists(st.tuples(keys, times, features), max_size=5), max_size=5)


def expected(rows: list[tuple[Any, int, Any]]) -> dict[Any, tuple[int, Any]]:
    model: dict[Any, tuple[int, Any]] = {}
    for key, event_ts, values in rows:
        if key not in model or event_ts >= model[key][0]:
            model[key] = (event_ts, values)
    return model


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=batches)
def test_store_equals_a_dict_in_which_the_newest_event_wins(
    store: PackedStore, batches: list[list[tuple[Any, int, Any]]]
) -> None:
    table = f"t{uuid4().hex}"
    for batch in batches:
        store.write(table, batch)
    model = expected([row for batch in batches for row in batch])
    asked = [*model, ("absent", 0), *model]
    assert store.read(table, asked) == [model.get(key) for key in asked]
    assert store.count(table) == len(model)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(keys, times, features), unique_by=lambda row: row[:2]), data=st.data())
def test_order_of_arrival_changes_nothing(store: PackedStore, rows: list[Any], data: st.DataObject) -> None:
    """Distinct events end in the same state in whatever order they arrive."""
    table = f"t{uuid4().hex}"
    for row in data.draw(st.permutations(rows)):
        store.write(table, [row])
    model = expected(rows)
    assert store.read(table, list(model)) == list(model.values())


def test_write_tells_how_many_rows_took_effect(store: PackedStore) -> None:
    assert store.write(VIEW, [(("EWR",), 5, {"temp": 1}), (("JFK",), 5, {"temp": 2})]) == 2
    assert store.write(VIEW, [(("EWR",), 4, {"temp": 9}), (("JFK",), 6, {"temp": 3})]) == 1
    assert store.read(VIEW, [("EWR",), ("JFK",)]) == [(5, {"temp": 1}), (6, {"temp": 3})]


def test_reading_nothing_and_the_never_written(store: PackedStore) -> None:
    assert store.read(VIEW, []) == []
    assert store.read(VIEW, [("EWR",)]) == [None]
    assert store.count(VIEW) == 0
    assert store.write(VIEW, []) == 0


def test_more_keys_than_one_statement_or_script_call_takes(store: PackedStore) -> None:
    rows = [((number,), number, {"x": number}) for number in range(40_000)]
    assert store.write(VIEW, iter(rows)) == 40_000
    assert store.read(VIEW, [key for key, _, _ in rows]) == [(event_ts, values) for _, event_ts, values in rows]


def test_a_reader_answers_many_tables_in_the_order_asked(store: PackedStore) -> None:
    """Values in the order of the read, None for a feature or a row that is not there; a table of one row has key ()."""
    store.write(VIEW, [(("EWR",), 5, {"temp": 1.5, "wind": None, "sky": "Ω"}), (("JFK",), 6, {"temp": 2.5})])
    store.write("flights__fallback", [((), 7, {"where": [0.5, -0.5], "late": True})])
    reads = [TableRead(VIEW, ("sky", "wind", "temp", "unknown")), TableRead("flights__fallback", ("where",))]
    reader = store.reader([*reads, TableRead("flights__empty", ("x",))])
    asked: list[list[Any]] = [[("JFK",), ("LGA",), ("EWR",), ("JFK",)], [()], []]
    jfk, ewr = (6, (None, None, 2.5, None)), (5, ("Ω", None, 1.5, None))
    assert reader.read(asked) == [[jfk, None, ewr, jfk], [(7, ([0.5, -0.5],))], []]


def test_a_reader_outlives_a_change_of_the_schema(store: PackedStore) -> None:
    """Rows of the old and the new layout are read side by side, by name."""
    reader = store.reader([TableRead(VIEW, ("a", "b"))])
    store.write(VIEW, [(("old",), 1, {"a": 1, "b": 2})])
    assert reader.read([[("old",)]]) == [[(1, (1, 2))]]
    store.write(VIEW, [(("new",), 1, {"b": "two", "c": 3})])
    assert reader.read([[("new",), ("old",)]]) == [[(1, (None, "two")), (1, (1, 2))]]


def test_a_reader_takes_more_tables_and_keys_than_a_statement_does(store: PackedStore) -> None:
    """Tables of the same keys are read together, and each row is still its own table's and its own key's."""
    tables = [f"flights__view_{at}" for at in range(40)]
    for at, table in enumerate(tables):
        store.write(table, [((number,), number, {"x": 1000 * at + number}) for number in range(at, 1_500, 7)])
    many, few = [(number,) for number in range(1_499, -1, -1)], [(39,), ("39",), (39,)]
    found = store.reader([TableRead(table, ("x",)) for table in (*tables, *tables[:2])]).read([many] * 40 + [few] * 2)
    for at, rows in enumerate(found[:40]):
        there = [number >= at and (number - at) % 7 == 0 for (number,) in many]
        assert rows == [(n, (1000 * at + n,)) if held else None for (n,), held in zip(many, there, strict=True)]
    assert found[40:] == [[None] * 3, [None] * 3]
    assert store.reader([TableRead(tables[4], ("x",))]).read([few]) == [[(39, (4039,)), None, (39, (4039,))]]


numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.just(1.5)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.sampled_from(["ab", "ba", "ac"]), numbers, numbers), max_size=9),
    gaps=st.sets(st.integers(0, 9)),
)
def test_many_rows_are_read_as_each_would_be(store: PackedStore, rows: list[Any], gaps: set[int]) -> None:
    """Rows of numbers are read at once if they are alike, and one by one if a null or another layout is among them."""
    table = f"t{uuid4().hex}"
    held = {at: (at - 5, dict(zip(names, values, strict=True))) for at, (names, *values) in enumerate(rows)}
    store.write(table, [((at,), *row) for at, row in held.items() if at not in gaps])
    (found,) = store.reader([TableRead(table, ("b", "a"))]).read([[(at,) for at in held]])
    expected = [None if at in gaps else (time, (row.get("b"), row.get("a"))) for at, (time, row) in held.items()]
    assert found == expected


cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(-9, 9), max_size=2),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=5), wanted=st.permutations("abcd"))
def test_a_reader_gives_what_was_written(store: PackedStore, table: list[Any], wanted: list[str]) -> None:
    """Whatever the types, and also where one feature is of another type in every row."""
    name = f"t{uuid4().hex}"
    rows = [((number,), number, dict(zip("abc", row, strict=True))) for number, row in enumerate(table)]
    store.write(name, rows)
    (found,) = store.reader([TableRead(name, tuple(wanted))]).read([[key for key, _, _ in rows]])
    assert found == [(at, tuple(values.get(feature) for feature in wanted)) for _, at, values in rows]
    assert sorted(store.rows(name)) == rows


def test_every_row_of_a_table_is_iterated_over(store: PackedStore) -> None:
    rows = [((number,), number, {"x": number}) for number in range(25_000)]
    store.write(VIEW, rows)
    store.write("flights__aircraft", rows[:1])
    assert sorted(store.rows(VIEW)) == rows  # type: ignore[type-var]
    assert list(store.rows("flights__nothing")) == []


def test_tables_and_key_types_are_apart(store: PackedStore) -> None:
    store.write(VIEW, [((1,), 1, {"of": "int"}), (("1",), 1, {"of": "text"})])
    store.write("flights__aircraft", [((1,), 1, {"of": "aircraft"})])
    assert store.read(VIEW, [(1,), ("1",)]) == [(1, {"of": "int"}), (1, {"of": "text"})]
    assert store.count("flights__aircraft") == 1


def test_what_was_written_is_there_after_reopening(store: PackedStore, url: str) -> None:
    store.write(VIEW, [(("EWR",), 5, {"temp": float("nan")})])
    again = PackedStore.open(url)
    assert again.read(VIEW, [("EWR",)]) == [(5, {"temp": None})]
    again.close()


def _race(arguments: tuple[str, int]) -> int:
    url, offset = arguments
    opened = PackedStore.open(url)
    times = [(offset * 37 + step * 61) % 500 for step in range(200)]
    for at in times:
        opened.write(VIEW, [(("EWR",), at, {"at": at})])
    opened.close()
    return max(times)


def test_the_newest_of_many_processes_wins(url: str) -> None:
    """Four processes open a store that does not exist yet and race on one key."""
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        newest = max(pool.map(_race, [(url, offset) for offset in range(4)]))
    opened = PackedStore.open(url)
    assert opened.read(VIEW, [("EWR",)]) == [(newest, {"at": newest})]
    opened.close()


def test_threads_read_while_another_writes(store: PackedStore) -> None:
    """A reader sees a whole row, old or new, never an error."""
    store.write(VIEW, [(("EWR",), 0, {"at": 0})])

    def read(_: int) -> bool:
        (row,) = store.read(VIEW, [("EWR",)])
        return row is not None and row[1] == {"at": row[0]}

    with ThreadPoolExecutor(9) as pool:
        writing = pool.submit(lambda: [store.write(VIEW, [(("EWR",), at, {"at": at})]) for at in range(200)])
        assert all(pool.map(read, range(2_000)))
        assert sum(writing.result()) == 200


@pytest.mark.parametrize("table", ["", "Weather", "a b", "x;drop table packed", "1st", 'a"b', "a*"])
@pytest.mark.parametrize("call", [lambda s, t: s.write(t, []), lambda s, t: s.read(t, []), lambda s, t: s.count(t)])
def test_table_names_are_validated(store: PackedStore, table: str, call: Callable[[PackedStore, str], Any]) -> None:
    with pytest.raises(TableNameError, match="allowed"):
        call(store, table)


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(UnknownStoreError, match=r"'mongodb://x'.*sqlite:///.*redis://") as caught:
        PackedStore.open("mongodb://x")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_store_is_found_by_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLOPS_ONLINE_STORE", raising=False)
    assert online_store_url() == f"sqlite:///{home}/feast/online_store.db"
    monkeypatch.setenv("MLOPS_ONLINE_STORE", "redis://cache:6379/0")
    assert online_store_url() == "redis://cache:6379/0"


def test_importing_it_imports_nothing_heavy() -> None:
    import subprocess

    code = "import sys, resources.online.packed_store; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"redis", "polars", "dagster", "pandas", "feast"} & set(loaded)


def test_a_database_that_stays_locked_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers go on meanwhile, and the writer's rows are there when it is repeated."""
    monkeypatch.setattr(SqlitePackedStore, "PATIENCE", 0.01)
    store = PackedStore.open(f"sqlite:///{tmp_path / 'online.db'}")
    store.write(VIEW, [(("EWR",), 1, {"temp": 1.5})])
    other = sqlite3.connect(tmp_path / "online.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OnlineStoreUnavailableError, match=r"online\.db did not answer.*locked.*repeat"):
        store.write(VIEW, [(("EWR",), 2, {"temp": 2.5})])
    assert store.read(VIEW, [("EWR",)]) == [(1, {"temp": 1.5})]
    other.execute("ROLLBACK")
    assert store.write(VIEW, [(("EWR",), 2, {"temp": 2.5})]) == 1
    other.close()
    store.close()
