"""Couriers: a thread for each channel of a process, which delivers what is due and ends when nothing is due soon.

A channel that hangs holds up neither the process nor the other channels. What a courier leaves, because its process
ended or because the next attempt is minutes away, is for the sensor `alerts`.
"""

from __future__ import annotations

import atexit
import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from resources.alerts import outbox
from resources.alerts.channels import RefusedError, channel_named
from resources.database import database_url

PATIENCE_SECONDS = 10.0
EXIT_SECONDS = 2.0  # that a process waits at its end for what it sent last
Key = tuple[str, str, str]

logger = logging.getLogger("resources.alerts")
_lock = threading.Lock()
_running: dict[Key, Courier] = {}


@dataclass(frozen=True)
class Terms:
    """How long an attempt may take, how long one waits for others of its group, and when delivering is given up."""

    timeout: float
    window: float
    give_up: float


class Courier(threading.Thread):
    """Delivers on one channel. `hurry` is set when the process ends: then groups are not waited for."""

    def __init__(self, database: str, channel: str, address: str, terms: Terms) -> None:
        super().__init__(name=f"alerts to {channel}", daemon=True)
        self.database, self.channel, self.address, self.terms = database, channel, address, terms
        self.woken, self.hurry, self.ended = threading.Event(), False, False

    def run(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            while (pause := self._step()) is not None or not self._end():
                self.woken.wait(pause or 0)
                self.woken.clear()
        except (SQLAlchemyError, OSError):
            logger.exception("Alerts to %s wait: the outbox cannot be read", self.channel)
        finally:
            self.ended = True

    def wake(self) -> bool:
        """Have it look again; False when it ended."""
        self.woken.set()
        return self.is_alive() and not self.ended

    def _end(self) -> bool:
        """No more after this, unless somebody woke it since it looked."""
        with _lock:
            self.ended = not self.woken.is_set()
            return self.ended

    def _step(self) -> float | None:
        """Try one delivery; seconds until the next may be due, None when none is for a while."""
        if database_url() != self.database:
            return None
        claim = outbox.claim(self.channel, time.time() + (self.terms.window if self.hurry else 0))
        if claim is not None:
            self._deliver(claim)
            return 0
        due = outbox.next_due(self.channel)
        pause = None if due is None else max(0.0, due - time.time())
        return pause if pause is not None and pause < PATIENCE_SECONDS + self.terms.window else None

    def _deliver(self, claim: outbox.Claim) -> None:
        try:
            channel_named(self.channel).deliver(self.address, claim.message, self.terms.timeout)
        except RefusedError as error:
            self._give_up(claim, str(error))
        except Exception as error:  # noqa: BLE001  whatever a library raises, the alert stays to be delivered
            said = without_secrets(f"{type(error).__name__}: {error}", self.address)
            if time.time() - claim.created_at >= self.terms.give_up:
                self._give_up(claim, said)
            else:
                logger.warning("Alert %r waits: %s said %s", claim.message.title, self.channel, said)
                outbox.postponed(claim, said, time.time())
        else:
            outbox.delivered(claim, time.time())

    def _give_up(self, claim: outbox.Claim, error: str) -> None:
        said = without_secrets(error, self.address)
        logger.error("Alert %r was not delivered by %s: %s", claim.message.title, self.channel, said)
        outbox.given_up(claim, said, time.time())


def send_off(channels: Mapping[str, str], terms: Terms) -> list[Courier]:
    """A courier on its way for each channel; one that is there already looks again."""
    database = database_url()
    with _lock:
        return [_courier((database, name, address), terms) for name, address in channels.items()]


def await_all(couriers: Iterable[Courier], seconds: float) -> bool:
    """Wait until the couriers ended, so long; whether they did."""
    deadline = time.monotonic() + seconds
    for courier in couriers:
        courier.join(max(0.0, deadline - time.monotonic()))
    return all(not courier.is_alive() for courier in couriers)


def without_secrets(text: str, address: str) -> str:
    """An address of a webhook is its password, and an SMTP one holds one: no part of it but the host is told."""
    for secret in (secret for secret in (address, *_secrets(address)) if secret and len(secret) > 1):
        text = text.replace(secret, "***")
    return text


def _secrets(address: str) -> list[str | None]:
    try:
        parts = urlsplit(address)
    except ValueError:  # no address at all: then none of its parts is told
        return [*re.split(r"[/?&@]+", address)]
    return [parts.netloc.rpartition("@")[0], parts.password, parts.path, parts.query]


def _courier(key: Key, terms: Terms) -> Courier:
    found = _running.get(key)
    if found is not None and found.wake():
        return found
    for ended in [key for key, one in _running.items() if one.ended]:
        del _running[ended]
    courier = _running[key] = Courier(*key, terms)
    courier.start()
    return courier


@atexit.register
def _at_exit() -> None:
    """A command that ends at once still tells what it sent, if the receiver answers at once."""
    left = [courier for courier in list(_running.values()) if not courier.ended]
    for courier in left:
        courier.hurry = True
        courier.wake()
    await_all(left, EXIT_SECONDS)
