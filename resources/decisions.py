"""Decisions about models: whether to retrain, to promote, to approve, to roll out, to alert, also when it was no.

One line is one decision with its reasons and what it rested on. Asked again with the same answer for the same reasons,
the newest line of that kind says so (`times`, `until`) and no line is added, so that a sensor may ask every half minute
and the history stays a page. Lines are in the order in which they were written, whatever the clock said.

What a decider must remember between two questions lies beside its decisions and moves with them in one transaction,
compared and set: of two that decide at once from the same memory, the second is refused and asks again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from resources.database import transaction

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData, RowMapping, Table

Kind = Literal["retrain", "promotion", "approval", "rollout", "alert"]


class StaleMemoryError(RuntimeError):
    """Another decided first, from the same memory."""

    @classmethod
    def of(cls, model: str, kind: str, revision: int, now: int) -> Self:
        return cls(
            f"Somebody decided about {kind!r} of {model!r} meanwhile (memory {revision} was read, {now} is there now). "
            "Nothing was written; read the memory and decide again."
        )


@dataclass(frozen=True)
class Decided:
    """One decision. `at` is when it was made first, `until` when last, `times` how often; `day` what it was about."""

    model: str
    kind: str
    outcome: str
    reasons: tuple[str, ...]
    day: date | None
    by: str
    at: str
    until: str
    times: int = 1
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Remembered:
    """What a decider wrote down last; `revision` 0 is nothing yet."""

    value: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 0


class _Tables(NamedTuple):
    all: MetaData
    decisions: Table
    memories: Table


@cache
def _tables() -> _Tables:
    from sqlalchemy import JSON, Column, Index, Integer, MetaData, String, Table

    tables = MetaData()
    words = [Column(name, String, nullable=False) for name in ("model", "kind", "outcome", "by", "at", "until")]
    decisions = Table(
        "decisions",
        tables,
        Column("id", Integer, primary_key=True),
        *words,
        Column("day", String),
        Column("times", Integer, nullable=False),
        Column("reasons", JSON, nullable=False),
        Column("evidence", JSON, nullable=False),
    )
    Index("decisions_of_a_model", decisions.c.model, decisions.c.kind, decisions.c.id)
    memories = Table(
        "memories",
        tables,
        Column("model", String, primary_key=True),
        Column("kind", String, primary_key=True),
        Column("revision", Integer, nullable=False),
        Column("value", JSON, nullable=False),
    )
    return _Tables(tables, decisions, memories)


@dataclass(frozen=True)
class DecisionStore:
    """The decisions of all models in the platform's database; `model` is an id, `<team>/<name>`."""

    def record(
        self,
        model: str,
        kind: Kind,
        outcome: str,
        reasons: Sequence[str],
        *,
        day: date | None = None,
        by: str,
        evidence: Mapping[str, Any] | None = None,
        memory: Remembered | None = None,
    ) -> bool:
        """Write a decision down; whether it is another one than the last of its kind.

        `memory` is what to remember from now on, with the revision that was read. Raises StaleMemoryError where that is
        no longer the newest. `evidence` is whatever JSON can say.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        asked = Decided(model, kind, outcome, tuple(reasons), day, by, now, now, evidence=evidence or {})
        with transaction(_tables().all) as connection:
            if memory is not None:
                _remember(connection, model, kind, memory)
            return _write(connection, asked)

    def history(self, model: str) -> list[Decided]:
        """Every decision, oldest first."""
        from sqlalchemy import select

        table = _tables().decisions
        with transaction(_tables().all) as connection:
            rows = connection.execute(select(table).where(table.c.model == model).order_by(table.c.id)).mappings()
            return [_decided(row) for row in rows]

    def memory(self, model: str, kind: Kind) -> Remembered:
        """What the decider of a kind wrote down with its last decision."""
        with transaction(_tables().all) as connection:
            return _memory(connection, model, kind)


def _write(connection: Connection, asked: Decided) -> bool:
    from sqlalchemy import insert, select, update

    table = _tables().decisions
    same_kind = (table.c.model == asked.model) & (table.c.kind == asked.kind)
    row = connection.execute(select(table).where(same_kind).order_by(table.c.id.desc()).limit(1)).mappings().first()
    if row is not None and _same(_decided(row), asked):
        newest = {"times": row["times"] + 1, "until": max(row["until"], asked.until)}
        connection.execute(update(table).where(table.c.id == row["id"]).values(newest))
        return False
    said = {"day": asked.day.isoformat() if asked.day else None, "reasons": list(asked.reasons)}
    connection.execute(insert(table).values({**asdict(asked), **said}))
    return True


def _same(one: Decided, other: Decided) -> bool:
    return (one.outcome, one.reasons, one.day, one.by) == (other.outcome, other.reasons, other.day, other.by)


def _decided(row: RowMapping) -> Decided:
    told: dict[str, Any] = {name: value for name, value in row.items() if name != "id"}
    day = date.fromisoformat(told["day"]) if told["day"] else None
    return Decided(**{**told, "day": day, "reasons": tuple(told["reasons"])})


def _memory(connection: Connection, model: str, kind: str) -> Remembered:
    from sqlalchemy import select

    table = _tables().memories
    chosen = select(table.c.value, table.c.revision).where(table.c.model == model, table.c.kind == kind)
    row = connection.execute(chosen).first()
    return Remembered(row.value, row.revision) if row else Remembered()


def _remember(connection: Connection, model: str, kind: str, memory: Remembered) -> None:
    from sqlalchemy import insert, update

    table = _tables().memories
    now = _memory(connection, model, kind)
    if now.revision != memory.revision:
        raise StaleMemoryError.of(model, kind, memory.revision, now.revision)
    if now.value == memory.value and now.revision:
        return
    said = {"revision": now.revision + 1, "value": dict(memory.value)}
    if now.revision:
        connection.execute(update(table).where(table.c.model == model, table.c.kind == kind).values(said))
    else:
        connection.execute(insert(table).values(model=model, kind=kind, **said))
