"""Approvals: a person's word on a registered version, kept as a row of the platform's database while it is waited for.

    waiting -> approved | refused      by a person, with a reason
    waiting -> expired                 nobody said anything in time
    waiting -> superseded              a newer version was asked about, or made champion

Nothing waits in memory, so a question outlives every process. A model has at most one waiting version. What is decided
stays so, whoever repeats or contradicts it, and whatever the clock says later; only a person who promotes a version by
hand overrules it, and is written down as who approved. The registry is told afterwards (`untold`, `told`): its tags
show what was decided here, and decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Literal, Self

from resources.database import transaction

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

State = Literal["waiting", "approved", "refused", "expired", "superseded"]
Verdict = Literal["approved", "refused"]
WAITING: State = "waiting"
APPROVED: Verdict = "approved"
REFUSED: Verdict = "refused"
EXPIRED: State = "expired"
SUPERSEDED: State = "superseded"


class UnknownApprovalError(LookupError):
    """A version was decided about that nobody asked about."""

    @classmethod
    def of(cls, model: str, version: str, waiting: Iterable[str]) -> Self:
        return cls(
            f"{model!r} does not wait for a word on version {version!r} (waiting: {', '.join(waiting) or 'none'}). "
            "See `mlops approvals`; a version waits from when it passed its gate and its champion asset ran."
        )


class DecidedApprovalError(RuntimeError):
    """A version was decided about otherwise before, or too late."""

    @classmethod
    def of(cls, approval: Approval) -> Self:
        command = f"mlops promote {approval.model} --version {approval.version} --why ..."
        next_step = (
            f"To take it back, `mlops rollback {approval.model}`."
            if approval.state == APPROVED
            else f"A newer candidate is asked about anew; to have this one all the same, `{command}`."
        )
        return cls(
            f"Version {approval.version} of {approval.model!r} is {approval.state} since {approval.decided_at}, by "
            f"{approval.by} ({approval.why}), and stays so. {next_step}"
        )


class AnonymousDecisionError(ValueError):
    """A decision without a person or a reason."""

    @classmethod
    def of(cls, model: str, version: str, by: str, why: str) -> Self:
        return cls(
            f"Version {version} of {model!r} cannot be decided about by {by!r} because of {why!r}: both are kept for "
            "whoever asks later. Say who and why."
        )


@dataclass(frozen=True)
class Approval:
    """One version's question and, once it is decided, its answer. Times are ISO, in UTC."""

    model: str
    version: str
    state: State
    asked_at: str
    asked_by: str
    asked_why: str
    expires_at: str
    decided_at: str = ""
    by: str = ""
    why: str = ""
    told: bool = False


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class ApprovalStore:
    """The questions of every model."""

    clock: Callable[[], datetime] = _now

    def ask(self, model: str, version: str, *, expires: timedelta, by: str, why: str) -> Approval:
        """Wait for a word on a version; one that was asked about before is left as it stands.

        An older version that waits is superseded.
        """
        with transaction(_tables().metadata) as connection:
            if found := _read(connection, model, version):
                return found
            _supersede(connection, model, version, by, self._at())
            asked = Approval(model, version, WAITING, self._at(), by, why, _text(self.clock() + expires))
            connection.execute(_tables().insert().values(vars(asked)))
            return asked

    def decide(self, model: str, version: str, verdict: Verdict, *, by: str, why: str) -> Approval:
        """A person's word. Repeated it changes nothing: the first one's name and reason stand.

        Raises UnknownApprovalError where nobody asked, DecidedApprovalError where it is too late.
        """
        _refuse_anonymous(model, version, by, why)
        self.expire(model)
        with transaction(_tables().metadata) as connection:
            found = _read(connection, model, version)
            if found is None:
                raise UnknownApprovalError.of(model, version, [item.version for item in _waiting(connection, model)])
            if found.state == verdict:
                return found
            if found.state != WAITING:
                raise DecidedApprovalError.of(found)
            return _decide(connection, found, verdict, self._at(), by, why)

    def overrule(self, model: str, version: str, *, by: str, why: str) -> Approval:
        """Approved because a person promoted it by hand, whether it was asked about or decided otherwise before."""
        _refuse_anonymous(model, version, by, why)
        with transaction(_tables().metadata) as connection:
            found = _read(connection, model, version)
            if found and found.state == APPROVED:
                return found
            at = self._at()
            approved = Approval(model, version, APPROVED, at, by, why, at, at, by, why)
            if found is None:
                connection.execute(_tables().insert().values(vars(approved)))
                return approved
            return _decide(connection, found, APPROVED, at, by, why)

    def supersede(self, model: str, version: str, *, by: str) -> list[Approval]:
        """Older versions that wait are not waited for any more: `version` became champion."""
        with transaction(_tables().metadata) as connection:
            return _supersede(connection, model, version, by, self._at())

    def expire(self, model: str | None = None) -> list[Approval]:
        """What waited for too long, of one model or of all; those that this call found."""
        with transaction(_tables().metadata) as connection:
            late = [item for item in _waiting(connection, model) if item.expires_at <= self._at()]
            return [
                _decide(connection, item, EXPIRED, self._at(), "the clock", f"nobody decided by {item.expires_at}")
                for item in late
            ]

    def read(self, model: str, version: str) -> Approval | None:
        with transaction(_tables().metadata) as connection:
            return _read(connection, model, version)

    def history(self, model: str | None = None) -> list[Approval]:
        """Every question, oldest first."""
        with transaction(_tables().metadata) as connection:
            return _all(connection, model)

    def waiting(self, model: str | None = None) -> list[Approval]:
        """What may still be decided."""
        return [item for item in self.history(model) if item.state == WAITING and item.expires_at > self._at()]

    def approved(self, model: str) -> set[str]:
        """The versions that a person approved."""
        return {item.version for item in self.history(model) if item.state == APPROVED}

    def untold(self, model: str) -> list[Approval]:
        """What the registry does not show yet."""
        return [item for item in self.history(model) if not item.told]

    def told(self, approval: Approval) -> None:
        """The registry shows it; not said of what was decided otherwise meanwhile."""
        with transaction(_tables().metadata) as connection:
            if _read(connection, approval.model, approval.version) == approval:
                _write(connection, replace(approval, told=True))

    def _at(self) -> str:
        return _text(self.clock())


def _text(moment: datetime) -> str:
    """All of one length and zone, so that the texts are ordered as the moments are."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def _refuse_anonymous(model: str, version: str, by: str, why: str) -> None:
    if not (by.strip() and why.strip()):
        raise AnonymousDecisionError.of(model, version, by, why)


def _supersede(connection: Connection, model: str, version: str, by: str, at: str) -> list[Approval]:
    older = [item for item in _waiting(connection, model) if int(item.version) < int(version)]
    return [_decide(connection, item, SUPERSEDED, at, by, f"version {version} came after it") for item in older]


def _waiting(connection: Connection, model: str | None) -> list[Approval]:
    return [item for item in _all(connection, model) if item.state == WAITING]


def _all(connection: Connection, model: str | None) -> list[Approval]:
    table = _tables()
    chosen = table.select() if model is None else table.select().where(table.c.model == model)
    return [Approval(**row) for row in connection.execute(chosen.order_by(table.c.asked_at)).mappings()]


def _read(connection: Connection, model: str, version: str) -> Approval | None:
    table = _tables()
    chosen = table.select().where(table.c.model == model, table.c.version == version)
    row = connection.execute(chosen).mappings().first()
    return Approval(**row) if row else None


def _decide(connection: Connection, approval: Approval, state: State, at: str, by: str, why: str) -> Approval:
    return _write(connection, replace(approval, state=state, decided_at=at, by=by, why=why, told=False))


def _write(connection: Connection, approval: Approval) -> Approval:
    table = _tables()
    here = (table.c.model == approval.model, table.c.version == approval.version)
    connection.execute(table.update().where(*here).values(vars(approval)))
    return approval


@cache
def _tables() -> Table:
    from sqlalchemy import Boolean, Column, MetaData, String, Table

    words = ("state", "asked_at", "asked_by", "asked_why", "expires_at", "decided_at", "by", "why")
    return Table(
        "approvals",
        MetaData(),
        Column("model", String, primary_key=True),
        Column("version", String, primary_key=True),
        *(Column(name, String, nullable=False) for name in words),
        Column("told", Boolean, nullable=False),
    )
