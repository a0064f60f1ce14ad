"""`mlops history`: what happened to a model and what was decided about it. `mlops notify`: something new happened."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from mlops_assets.terminal import print_table

if TYPE_CHECKING:
    from mlops_assets.history import Event

Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only about this day and later")]
Until = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only about this day and earlier")]


def history(
    model: Annotated[str, typer.Argument(help="The model, as <team>/<name>, e.g. flights/late_arrival")],
    decisions: Annotated[bool, typer.Option("--decisions", help="Each decision, also those nothing came of")] = False,
    since: Day = None,
    until: Until = None,
    as_json: Annotated[bool, typer.Option("--json", help="For a program: each event, with its evidence")] = False,
) -> None:
    """Every move of the champion and of the traffic, and every decision: when, who, what, from, to, why."""
    from mlops_assets.catalog import gather
    from mlops_assets.history import between, brief, events
    from resources.champions import ChampionStore
    from resources.decisions import DecisionStore
    from resources.releases import ReleaseStore

    pipeline = gather().model(model)
    everything = events(pipeline, ReleaseStore(), ChampionStore(), DecisionStore().history(pipeline.id))
    told = between(everything, _day(since), _day(until))
    if as_json:
        typer.echo(json.dumps([event.to_json() for event in told], indent=2, default=str))
        return
    shown = told if decisions else brief(told)
    columns = ["at (UTC)", "by", "what", "from", "to", "why"]
    print_table(f"History of {model}", columns, [_cells(event) for event in shown])


def notify(
    table: Annotated[str, typer.Argument(help="A source, as <team>/<name>, e.g. flights/raw_flights")],
    partition: Annotated[str | None, typer.Argument(help="The partition that is new, e.g. 2013-07-10")] = None,
    delivery: Annotated[
        str | None, typer.Option("--id", help="The delivery's own id: told again, it starts nothing")
    ] = None,
) -> None:
    """New data is there for a source: materialize it now, once."""
    from mlops_assets.catalog import gather
    from mlops_assets.deliveries import deliver

    run = deliver(gather(), table, partition, delivery)
    left = "left to the sensor `events`, which looks every 30 seconds (is `mlops up` running?)"
    typer.echo(f"run {run}" if run else left)


def _cells(event: Event) -> tuple[str, ...]:
    from mlops_assets.history import author, clock

    what = f"{event.what} [{event.day}]" if event.day else event.what
    again = f" ({event.times} times, last {clock(event.until)})" if event.times > 1 else ""
    return clock(event.at), author(event.by), what, event.before, event.after, event.why + again


def _day(given: datetime | None) -> date | None:
    return given.replace(tzinfo=UTC).date() if given else None
