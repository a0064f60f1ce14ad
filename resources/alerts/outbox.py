"""The outbox: what is to be told, to whom it was told, and what went wrong, in the platform's database.

An episode is a key that was not resolved since: it is told when it opens, when a warning becomes an error, and, if it
keeps happening, again after a silence. Alerts of one group wait a moment for each other and are one message. A message
has a delivery for each channel, which one process at a time may try: a claim moves `next_at` by a lease, so whoever
dies while it delivers is followed by another. So a message arrives at least once; twice only when a process dies
between the receiver's yes and writing it down.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import Boolean, Column, Float, Integer, MetaData, String, Table, Text, and_, delete, insert, or_, select
from sqlalchemy import func as sql
from sqlalchemy import update as set_

from resources.alerts.alert import Alert, Message, Told
from resources.database import transaction

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Row

WAITING, DELIVERED, GIVEN_UP = "waiting", "delivered", "given up"
LEASE_SECONDS = 60.0  # longer than any attempt takes
BACKOFF_SECONDS, LONGEST_BACKOFF = 2.0, 600.0
KEPT_SECONDS = 90 * 86_400.0

tables = MetaData()
episodes = Table(
    "alert_episodes",
    tables,
    Column("key", String, primary_key=True),
    Column("severity", String, nullable=False),  # as it was told
    Column("opened_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
    Column("told_at", Float, nullable=False),
    Column("times", Integer, nullable=False),  # in the whole episode
    Column("untold", Integer, nullable=False),  # since it was told
    Column("resolved_at", Float),
)
messages = Table(
    "alert_messages",
    tables,
    Column("id", String, primary_key=True),
    Column("group", String, nullable=False),
    Column("created_at", Float, nullable=False, index=True),
    Column("due_at", Float, nullable=False),
    Column("closed", Boolean, nullable=False),  # somebody was told it as it is
    Column("told", Text, nullable=False),
)
deliveries = Table(
    "alert_deliveries",
    tables,
    Column("message", String, primary_key=True),
    Column("channel", String, primary_key=True),
    Column("state", String, nullable=False, index=True),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_at", Float, nullable=False),
    Column("holder", String),
    Column("error", Text),
    Column("ended_at", Float),
)


@dataclass(frozen=True)
class Claim:
    """The right to try one delivery, until the lease ends."""

    message: Message
    channel: str
    holder: str
    attempts: int
    created_at: float


@dataclass(frozen=True)
class Delivery:
    """How one channel's delivery of a message stands."""

    channel: str
    state: str
    attempts: int
    error: str | None
    ended_at: float | None


@dataclass(frozen=True)
class Sent:
    """A message with its deliveries; none where only the log was told."""

    message: Message
    at: float
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True)
class Lasting:
    """An episode that nobody ended: how often it happened, since when and when last."""

    key: str
    times: int
    since: float
    last: float


def put(alert: Alert, channels: Iterable[str], now: float, *, window: float, repeat: float) -> bool:
    """Keep an alert; whether it is to be told now, or only counted because its episode was told already."""
    with transaction(tables) as connection:
        episode = connection.execute(select(episodes).where(episodes.c.key == alert.identity)).first()
        if episode is None or episode.resolved_at is not None:
            tell, told = True, Told(alert, 1, now)
            connection.execute(delete(episodes).where(episodes.c.key == alert.identity))
            connection.execute(insert(episodes).values(key=alert.identity, opened_at=now, times=1, **_told(alert, now)))
        else:
            tell = now - episode.told_at >= repeat or _graver(alert, episode.severity)
            told = Told(alert, episode.untold + 1, episode.opened_at)
            since = _told(alert, now) if tell else {"untold": told.times, "last_at": now}
            mine = episodes.c.key == alert.identity
            connection.execute(set_(episodes).where(mine).values(times=episode.times + 1, **since))
        if tell:
            _post(connection, told, channels, now, window)
    return tell


def resolve(key: str, now: float) -> bool:
    """End the episode of a key; False where none is open."""
    with transaction(tables) as connection:
        ended = connection.execute(
            set_(episodes).where(episodes.c.key == key, episodes.c.resolved_at.is_(None)).values(resolved_at=now)
        )
    return bool(ended.rowcount)


def claim(channel: str, now: float) -> Claim | None:
    """The oldest message that is due on a channel, now the caller's to deliver; None when there is none."""
    holder = uuid4().hex
    with transaction(tables) as connection:
        found = connection.execute(
            select(deliveries.c.attempts, messages)
            .join(messages, messages.c.id == deliveries.c.message)
            .where(deliveries.c.channel == channel, deliveries.c.state == WAITING, _due(now))
            .order_by(messages.c.created_at)
            .limit(1)
        ).first()
        if found is None:
            return None
        connection.execute(set_(messages).where(messages.c.id == found.id).values(closed=True))
        connection.execute(
            set_(deliveries)
            .where(deliveries.c.message == found.id, deliveries.c.channel == channel)
            .values(holder=holder, next_at=now + LEASE_SECONDS, attempts=found.attempts + 1)
        )
    return Claim(_message(found), channel, holder, found.attempts + 1, found.created_at)


def delivered(claim: Claim, now: float) -> None:
    _end(claim, state=DELIVERED, error=None, ended_at=now)


def given_up(claim: Claim, error: str, now: float) -> None:
    _end(claim, state=GIVEN_UP, error=error, ended_at=now)


def postponed(claim: Claim, error: str, now: float) -> None:
    """Try again later: after 2, 4, 8... seconds, at most ten minutes."""
    wait = min(LONGEST_BACKOFF, BACKOFF_SECONDS * 2.0 ** min(claim.attempts - 1, 20))
    _end(claim, next_at=now + wait, error=error, holder=None)


def next_due(channel: str) -> float | None:
    """When something is next to be tried on a channel; None when nothing waits."""
    waiting = and_(deliveries.c.channel == channel, deliveries.c.state == WAITING)
    with transaction(tables) as connection:
        found: float | None = connection.execute(select(sql.min(deliveries.c.next_at)).where(waiting)).scalar()
    return found


def tidy(now: float, give_up: float) -> int:
    """Give up what nobody could deliver in time, forget what is long over; how many were given up."""
    late = select(messages.c.id).where(messages.c.created_at < now - give_up)
    old = select(messages.c.id).where(messages.c.created_at < now - KEPT_SECONDS)
    with transaction(tables) as connection:
        lost = connection.execute(
            set_(deliveries)
            .where(deliveries.c.state == WAITING, deliveries.c.message.in_(late), deliveries.c.next_at <= now)
            .values(
                state=GIVEN_UP,
                ended_at=now,
                error=sql.coalesce(deliveries.c.error, "no process that knew the channel's address"),
            )
        )
        connection.execute(delete(deliveries).where(deliveries.c.message.in_(old)))
        connection.execute(delete(messages).where(messages.c.created_at < now - KEPT_SECONDS))
        connection.execute(delete(episodes).where(episodes.c.resolved_at < now - KEPT_SECONDS))
    return int(lost.rowcount)


def last(limit: int) -> list[Sent]:
    """The newest messages, newest first, each with its deliveries."""
    with transaction(tables) as connection:
        found = connection.execute(select(messages).order_by(messages.c.created_at.desc()).limit(limit)).all()
        ids = [row.id for row in found]
        tried = connection.execute(select(deliveries).where(deliveries.c.message.in_(ids))).all()
    return [
        Sent(_message(row), row.created_at, tuple(_delivery(one) for one in tried if one.message == row.id))
        for row in found
    ]


def open_keys() -> list[Lasting]:
    """What lasts, the newest first."""
    with transaction(tables) as connection:
        rows = connection.execute(
            select(episodes).where(episodes.c.resolved_at.is_(None)).order_by(episodes.c.last_at.desc())
        ).all()
    return [Lasting(row.key, row.times, row.opened_at, row.last_at) for row in rows]


def _post(connection: Connection, told: Told, channels: Iterable[str], now: float, window: float) -> None:
    """Join the message that the group is gathering, or begin one; alerts without a group wait for nobody."""
    group = told.alert.group
    gathering = and_(messages.c.group == group, messages.c.closed.is_(False), messages.c.due_at > now)
    found = connection.execute(select(messages).where(gathering)).first() if group else None
    if found is not None:
        told_now = json.dumps([*json.loads(found.told), told.to_json()])
        connection.execute(set_(messages).where(messages.c.id == found.id).values(told=told_now))
        return
    message, due_at = uuid4().hex, now + window if group else now
    made = {"id": message, "group": group, "created_at": now, "due_at": due_at, "closed": False}
    connection.execute(insert(messages).values(**made, told=json.dumps([told.to_json()])))
    if waiting := [{"message": message, "channel": name, "state": WAITING, "next_at": due_at} for name in channels]:
        connection.execute(insert(deliveries), waiting)


def _told(alert: Alert, now: float) -> dict[str, Any]:
    return {"severity": alert.severity, "told_at": now, "last_at": now, "untold": 0}


def _graver(alert: Alert, told: str) -> bool:
    return alert.severity == "error" and told == "warning"


def _due(now: float) -> ColumnElement[bool]:
    """Due, or put off further than anything ever is: then the clock was set back since."""
    return or_(deliveries.c.next_at <= now, deliveries.c.next_at > now + LONGEST_BACKOFF + LEASE_SECONDS)


def _end(claim: Claim, **values: Any) -> None:
    """Write down how an attempt ended, unless its lease ended first and another holds it."""
    mine = and_(
        deliveries.c.message == claim.message.id,
        deliveries.c.channel == claim.channel,
        deliveries.c.holder == claim.holder,
    )
    with transaction(tables) as connection:
        connection.execute(set_(deliveries).where(mine).values(**values))


def _message(row: Row[Any]) -> Message:
    return Message(row.id, row.group, tuple(Told.from_json(one) for one in json.loads(row.told)))


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(row.channel, row.state, row.attempts, row.error, row.ended_at)
