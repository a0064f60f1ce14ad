"""`mlops alerts`: what was told lately, by which channel it arrived or why not, and what lasts."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from mlops_assets.terminal import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resources.alerts.outbox import Delivery, Lasting, Sent


def alerts(
    limit: Annotated[int, typer.Option(help="How many messages, the newest first", min=1)] = 20,
    resolve: Annotated[str | None, typer.Option(help="End what lasts, by its key: told anew when it returns")] = None,
    test: Annotated[bool, typer.Option("--test", help="Send an alert to every channel and see what each says")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For a program")] = False,
) -> None:
    """What was told to people, how its deliveries stand, and what lasts. A test that did not arrive exits with 1."""
    from resources.alerts import outbox
    from resources.alerts.outbox import DELIVERED

    if resolve is not None:
        _resolve(resolve)
    if test:
        _test()
    sent, lasting = outbox.last(limit), outbox.open_keys()
    if as_json:
        document = {"messages": [asdict(one) for one in sent], "lasting": [asdict(one) for one in lasting]}
        typer.echo(json.dumps(document, indent=2))
    else:
        _show(sent, lasting)
    if test and any(one.state != DELIVERED for one in sent[0].deliveries):
        raise typer.Exit(1)


def _show(sent: Sequence[Sent], lasting: Sequence[Lasting]) -> None:
    print_table(
        "Alerts",
        ["at (UTC)", "severity", "alert", "text", "deliveries"],
        [
            (_clock(one.at), told.alert.severity, told.alert.title, told.text, "" if number else _deliveries(one))
            for one in sent
            for number, told in enumerate(one.message.told)
        ],
    )
    print_table(
        "What lasts (end one with --resolve KEY)",
        ["key", "times", "since (UTC)", "last (UTC)"],
        [(one.key, one.times, _clock(one.since), _clock(one.last)) for one in lasting],
    )


def _resolve(key: str) -> None:
    import time

    from resources.alerts import outbox

    if not outbox.resolve(key, time.time()):
        raise typer.BadParameter(f"Nothing lasts under the key {key!r}; `mlops alerts` lists the keys.")
    typer.echo(f"Ended: {key}")


def _test() -> None:
    """An alert of its own key each time, so that it is told however often it is asked for."""
    from resources.alerts import Alert
    from resources.alerts.channels import variables
    from resources.environment import resources_for

    resource = resources_for()["alerts"]
    if not resource.channels:
        raise typer.BadParameter(f"No channel is named. Set one of {', '.join(variables().values())}.")
    at = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}"
    key = f"test at {at}"
    resource.send(Alert("A test of the alerts", f"sent at {at} UTC by `mlops alerts --test`", "warning", key=key))
    resource.deliver(resource.timeout_seconds + 1)
    resource.resolve(key)


def _deliveries(one: Sent) -> str:
    return "\n".join(map(_delivery, one.deliveries)) or "the log alone"


def _delivery(one: Delivery) -> str:
    ended = f" {_clock(one.ended_at)}" if one.ended_at else ""
    problem = f" ({one.attempts} attempts; {one.error})" if one.error else ""
    return f"{one.channel}: {one.state}{ended}{problem}"


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
