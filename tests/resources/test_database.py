"""The platform's tables, in SQLite and in PostgreSQL: a transaction is whole or nothing, and writers take turns."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, inspect, select, update

from resources.database import SCHEMA, transaction
from resources.environment import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

MAKES = """
from sqlalchemy import Column, Integer, MetaData, Table, select, update, insert
from resources.database import transaction
tables = MetaData()
counters = Table("counters", tables, Column("name", Integer, primary_key=True), Column("value", Integer))
with transaction(tables) as connection:
    found = connection.execute(select(counters.c.value)).scalar()
    counted = insert(counters).values(name=1, value=1) if found is None else update(counters).values(value=found + 1)
    connection.execute(counted)
"""
tables = MetaData()
counters = Table("counters", tables, Column("name", Integer, primary_key=True), Column("value", Integer))


def value() -> int:
    with transaction(tables) as connection:
        return int(connection.execute(select(counters.c.value)).scalar_one())


def test_what_was_read_is_still_true_when_it_is_written(database: str) -> None:
    """Two hundred read-and-add by eight threads lose none."""
    with transaction(tables) as connection:
        connection.execute(insert(counters).values(name=1, value=0))

    def add(_: int) -> None:
        with transaction(tables) as connection:
            found = connection.execute(select(counters.c.value)).scalar_one()
            connection.execute(update(counters).values(value=found + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(200)))
    assert value() == 200


def test_a_block_that_raises_leaves_nothing(database: str) -> None:
    with transaction(tables) as connection:
        connection.execute(insert(counters).values(name=1, value=7))
    with pytest.raises(ZeroDivisionError), transaction(tables) as connection:
        connection.execute(update(counters).values(value=8))
        raise ZeroDivisionError
    assert value() == 7


def test_tables_are_made_once_by_many(database: str, home: Path) -> None:
    """Processes that meet an empty database at once all find their tables; none fails because another made them."""
    made = [subprocess.Popen([sys.executable, "-c", MAKES], cwd=PROJECT, stderr=subprocess.PIPE) for _ in range(4)]
    said = [process.communicate()[1].decode() for process in made]
    assert [process.returncode for process in made] == [0] * 4, said
    assert value() == 4


def test_tables_are_where_the_environment_says(database: str, home: Path) -> None:
    """Embedded, in the home; deployed, in a schema of their own beside Dagster's, and no file is left in the home."""
    with transaction(tables) as connection:
        connection.execute(insert(counters).values(name=1, value=7))
        names = inspect(connection).get_table_names(schema=SCHEMA if database == "postgresql" else None)
    assert "counters" in names
    assert (home / "platform.db").exists() == (database == "sqlite")


def test_each_home_has_its_own_tables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with transaction(tables) as connection:
        connection.execute(insert(counters).values(name=1, value=7))
    monkeypatch.setenv("MLOPS_HOME", str(home / "another"))
    with transaction(tables) as connection:
        assert connection.execute(select(counters)).all() == []
