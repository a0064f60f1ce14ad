"""A webhook: one POST of JSON a message, `id` and `Idempotency-Key` the same at each attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resources.alerts.channels import RefusedError

if TYPE_CHECKING:
    from resources.alerts.alert import Message

VARIABLE = "MLOPS_ALERT_WEBHOOK"
RETRIED = frozenset({408, 425, 429})  # of the client errors, those that another attempt may mend


def deliver(address: str, message: Message, timeout: float) -> None:
    """`title`, `severity`, `text` (all of it as lines) and `alerts`, each with its parts."""
    post(address, body(message), message.id, timeout, VARIABLE)


def body(message: Message) -> dict[str, Any]:
    alerts = [one.to_json()["alert"] | {"times": one.times, "since": one.since} for one in message.told]
    return {
        "id": message.id,
        "title": message.title,
        "severity": message.severity,
        "group": message.group,
        "text": message.text,
        "alerts": alerts,
    }


def post(address: str, document: dict[str, Any], identity: str, timeout: float, variable: str) -> None:
    """POST once. Redirects are not followed: a POST that becomes a GET is told to nobody."""
    import httpx

    if not address.startswith(("http://", "https://")):
        raise RefusedError.of("The address is no http(s) URL", variable)
    try:
        answer = httpx.post(address, json=document, headers={"Idempotency-Key": identity}, timeout=timeout)
    except httpx.InvalidURL as error:
        raise RefusedError.of("The address is no http(s) URL", variable) from error
    if 300 <= answer.status_code < 500 and answer.status_code not in RETRIED:
        raise RefusedError.of(f"The receiver answered {answer.status_code} {answer.reason_phrase}", variable)
    answer.raise_for_status()
