"""Alerts: what somebody should look at, told to the log and to every channel that is named, and never in the way.

`send` writes to the log and to the outbox and returns in milliseconds; couriers of this process deliver at once, and
the sensor `alerts` what is left. An alert is never the reason that something else fails or waits: a receiver that
hangs or fails is retried with a growing pause and given up after a day, which `mlops alerts` shows.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import dagster as dg
from pydantic import field_validator

from resources.alerts.alert import Alert, Message, Severity, Told
from resources.alerts.channels import UnknownChannelError, names

__all__ = ["Alert", "AlertResource", "Message", "Severity", "Told", "UnknownChannelError"]

HOUR = 3600.0

logger = logging.getLogger(__name__)


class AlertResource(dg.ConfigurableResource[Any]):
    """Sends alerts.

    `channels` are addresses by channel (webhook, slack, smtp), each a secret; `dagster_url` is where people open the
    UI. Alerts of a group are one message if they come within `window_seconds`; what lasts is told again after
    `repeat_hours`; a message that no attempt delivered is given up after `give_up_hours`.
    """

    channels: dict[str, str] = {}  # noqa: RUF012  a pydantic field, copied for each
    dagster_url: str = "http://127.0.0.1:3000"
    window_seconds: float = 5.0
    repeat_hours: float = 4.0
    give_up_hours: float = 24.0
    timeout_seconds: float = 10.0

    @field_validator("channels")
    @classmethod
    def _known(cls, channels: dict[str, str]) -> dict[str, str]:
        for name in channels:
            if name not in names():
                raise UnknownChannelError.of(name)
        return channels

    def send(self, alert: Alert) -> bool:
        """Log the alert and leave it to be told, once an episode; False when it could not even be written down.

        Never raises for a receiver or a database that fails, and waits for no receiver.
        """
        from sqlalchemy.exc import SQLAlchemyError

        from resources.alerts import outbox

        terms = {"window": self.window_seconds, "repeat": self.repeat_hours * HOUR}
        try:
            told = outbox.put(alert, self.channels, time.time(), **terms)
        except (SQLAlchemyError, OSError) as problem:
            _log(alert)
            logger.error("Alert %r could not be written down and goes to no channel: %s", alert.title, problem)  # noqa: TRY400  one line
            return False
        if told:
            _log(alert)
            self._couriers()
        return True

    def resolve(self, key: str) -> bool:
        """End an episode: the same key is told at once when it comes again. False where none was open, or known."""
        from sqlalchemy.exc import SQLAlchemyError

        from resources.alerts import outbox

        try:
            return outbox.resolve(key, time.time())
        except (SQLAlchemyError, OSError) as problem:
            logger.error("Alert %r could not be resolved: %s", key, problem)  # noqa: TRY400  one line
            return False

    def deliver(self, seconds: float) -> bool:
        """Deliver what is due, waiting at most so long; whether nothing is left to be tried soon."""
        from resources.alerts import courier, outbox

        outbox.tidy(time.time(), self.give_up_hours * HOUR)
        return courier.await_all(self._couriers(), seconds)

    def run_link(self, run_id: str) -> str:
        """The page of a run."""
        return f"{self.dagster_url.rstrip('/')}/runs/{run_id}"

    def asset_link(self, key: dg.AssetKey) -> str:
        """The page of an asset."""
        return f"{self.dagster_url.rstrip('/')}/assets/{'/'.join(key.path)}"

    def _couriers(self) -> list[Any]:
        from resources.alerts.courier import Terms, send_off

        terms = Terms(self.timeout_seconds, self.window_seconds, self.give_up_hours * HOUR)
        return send_off({name: _address(given) for name, given in self.channels.items()}, terms)


def _address(given: str) -> str:
    """Outside of Dagster's runs and ticks nobody has looked the variable up."""
    return str(given.get_value() or "") if isinstance(given, dg.EnvVar) else given


def _log(alert: Alert) -> None:
    logger.log(logging.ERROR if alert.severity == "error" else logging.WARNING, "%s", alert)
