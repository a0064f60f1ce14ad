"""What Slack is given is within what Slack takes, and mentions nobody."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from resources.alerts import Alert, AlertResource, Message, Told
from resources.alerts.channels import slack

if TYPE_CHECKING:
    from tests.resources.alerts.conftest import Receiver

ALERT = Alert(
    "flights/late_arrival drifts",
    "temp moved <!channel> & more",
    "warning",
    link="http://ui/runs/1",
    suggestion="Look at <it>",
    links={"report": "http://reports/1?a=1&b=2"},
)


def texts(message: Message) -> list[str]:
    return [block["text"]["text"] for block in slack.body(message)["blocks"]]


def test_an_alert_is_shown_with_suggestion_and_links(home: Path, receiver: Receiver) -> None:
    """Over the wire: a header, one section with named links, and the text of the notification."""
    AlertResource(channels={"slack": receiver.url}).send(ALERT)
    (body,) = receiver.wait_for(1)
    header, section = body["blocks"]
    assert header["type"] == "header" and header["text"]["text"] == ALERT.title
    assert section["text"]["text"] == (
        ":large_orange_circle: *flights/late_arrival drifts*\n"
        "temp moved &lt;!channel&gt; &amp; more\n"
        "_Look at &lt;it&gt;_\n"
        "<http://ui/runs/1|page> · <http://reports/1?a=1&amp;b=2|report>"
    )
    assert body["text"] == "flights/late_arrival drifts: temp moved &lt;!channel&gt; &amp; more"


def test_a_long_text_is_cut_and_its_links_are_not() -> None:
    """A section of more than 3,000 characters would be refused, and the alert with it."""
    long = Alert("t" * 400, "x" * 9_000, link="http://ui/runs/1")
    header, section = texts(Message("1", "", (Told(long),)))
    assert len(header) <= 150 and len(section) <= 3_000 and section.endswith("<http://ui/runs/1|page>")


def test_of_many_alerts_the_first_are_shown_and_the_rest_counted() -> None:
    """A message of more than fifty blocks would be refused."""
    many = Message("1", "flights", tuple(Told(Alert(f"alert {number}", "x")) for number in range(300)))
    shown = texts(many)
    assert shown[0] == "flights: 300 alerts" and len(shown) == 12 and shown[-1] == "and 290 more: `mlops alerts`"
