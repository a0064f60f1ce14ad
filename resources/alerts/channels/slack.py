"""Slack, and what takes its webhooks (Mattermost, Rocket.Chat): blocks to read, `text` for the notification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resources.alerts.channels.webhook import post

if TYPE_CHECKING:
    from resources.alerts.alert import Message, Told

VARIABLE = "MLOPS_ALERT_SLACK"
SHOWN = 10  # a message holds at most 50 blocks
LONGEST, LONGEST_TITLE = 2900, 150  # Slack refuses a section of more than 3,000 characters, a header of more than 150
SIGNS = {"error": ":red_circle:", "warning": ":large_orange_circle:"}


def deliver(address: str, message: Message, timeout: float) -> None:
    post(address, body(message), message.id, timeout, VARIABLE)


def body(message: Message) -> dict[str, Any]:
    header = {"type": "header", "text": {"type": "plain_text", "text": message.title[:LONGEST_TITLE], "emoji": True}}
    blocks = [header, *(_section(_shown(one)) for one in message.told[:SHOWN])]
    if left := len(message.told) - SHOWN:
        blocks += [_section(f"and {left} more: `mlops alerts`")] if left > 0 else []
    return {"text": _escaped(f"{message.title}: {message.told[0].alert.text}")[:LONGEST], "blocks": blocks}


def _shown(told: Told) -> str:
    alert = told.alert
    lines = [f"{SIGNS[alert.severity]} *{_escaped(alert.title)}*", _escaped(told.text)]
    if alert.suggestion:
        lines.append(f"_{_escaped(alert.suggestion)}_")
    # Links are cut last: one that is cut leads nowhere.
    links = " · ".join(f"<{_escaped(url)}|{_escaped(name)}>" for name, url in alert.pages.items())
    return "\n".join(lines)[: max(0, LONGEST - len(links))] + (f"\n{links}" if links else "")


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def _escaped(text: str) -> str:
    """The three characters that are markup to Slack: a text may not mention everybody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
