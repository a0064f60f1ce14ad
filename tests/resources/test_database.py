"""The platform's tables: a transaction is whole or nothing, and writers take turns."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select, update

from resources.database import transaction

if TYPE_CHECKING:
    from pathlib import Path

tables = MetaData()
counters = Table("counters", tables, Column("name", Integer, primary_key=True), Column("value", Integer))


def value() -> int:
    with transaction(tables) as connection:
        return int(connection.execute(select(counters.c.value)).scalar_one())


def test_what_was_read_is_still_true_when_it_is_written(home: Path) -> None:
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


def test_a_block_that_raises_leaves_nothing(home: Path) -> None:
    with transaction(tables) as connection:
        connection.execute(insert(counters).values(name=1, value=7))
    with pytest.raises(ZeroDivisionError), transaction(tables) as connection:
        connection.execute(update(counters).values(value=8))
        raise ZeroDivisionError
    assert value() == 7


def test_each_home_has_its_own_tables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with transaction(tables) as connection:
        connection.execute(insert(counters).values(name=1, value=7))
    monkeypatch.setenv("MLOPS_HOME", str(home / "another"))
    with transaction(tables) as connection:
        assert connection.execute(select(counters)).all() == []
