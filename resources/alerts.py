"""Alerts: one thing somebody should look at, written to the log and, where one is named, posted to a webhook.

An alert is never the reason that something else fails: what cannot be delivered after bounded attempts is
logged as an error, and the caller is told by the return value.
"""

import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from typing import Any, Literal

import dagster as dg

logger = logging.getLogger(__name__)

Severity = Literal["warning", "error"]
RETRIED = frozenset({408, 425, 429})  # of the client errors, those that another attempt may mend


@dataclass(frozen=True)
class Alert:
    """What happened, to what, why, what to do, and where to look. `text` and `suggestion` are a line each.

    Alerts of one `group` (a model's id, say) are told together; the same `key`, by default the title, is told once
    while it lasts. `links` are further pages by name.
    """

    title: str
    text: str
    severity: Severity = "error"
    link: str | None = None
    suggestion: str = ""
    group: str = ""
    key: str = ""
    links: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.title}: {self.text}" + (f" ({self.link})" if self.link else "")


class AlertResource(dg.ConfigurableResource[Any]):
    """Sends alerts. `webhook_url` gets a JSON object: title, severity, link, and `text`, the whole as Slack shows it.

    `dagster_url` is where people open the UI; links in alerts lead there.
    """

    webhook_url: str | None = None
    dagster_url: str = "http://127.0.0.1:3000"
    attempts: int = 3
    timeout_seconds: float = 5.0
    backoff_seconds: float = 0.5

    def send(self, alert: Alert) -> bool:
        """Log the alert and post it; False when the webhook did not take it. Never raises for a failing webhook."""
        logger.log(logging.ERROR if alert.severity == "error" else logging.WARNING, "%s", alert)
        return self.webhook_url is None or self._deliver(self.webhook_url, alert)

    def run_link(self, run_id: str) -> str:
        """The page of a run."""
        return f"{self.dagster_url.rstrip('/')}/runs/{run_id}"

    def _deliver(self, url: str, alert: Alert) -> bool:
        told = {name: value for name, value in asdict(alert).items() if value or name == "link"}
        body = json.dumps({**told, "text": str(alert)}).encode()
        problem = "no attempt is allowed (attempts is 0)"
        for attempt in range(self.attempts):
            time.sleep(self.backoff_seconds * (2**attempt - 1))
            try:
                self._post(url, body)
            except ValueError:
                problem = "webhook_url is no http(s) URL"  # it is not shown: a webhook's address is its password
                break
            except (OSError, HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
                if not _worth_retrying(error):
                    break
            else:
                return True
        logger.error("Alert %r was not delivered: %s", alert.title, problem)
        return False

    def _post(self, url: str, body: bytes) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(url)
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310  checked above
        with urllib.request.urlopen(request, timeout=self.timeout_seconds) as response:  # noqa: S310  checked above
            response.read()


def _worth_retrying(error: Exception) -> bool:
    return not isinstance(error, urllib.error.HTTPError) or error.code >= 500 or error.code in RETRIED
