"""The `mlops` command: what a person does to models from a shell.

Each command reads the declarations and the stores under MLOPS_HOME, and goes through the same functions
as the assets. Problems that the user can mend are printed as one line; everything else is a traceback.
"""

from __future__ import annotations

import getpass
import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_assets.alerts_cli import alerts
from mlops_assets.artifacts_cli import artifacts
from mlops_assets.compute_cli import compute
from mlops_assets.decisions_cli import history, notify
from mlops_assets.features_cli import features
from mlops_assets.runs_cli import migrate, runs
from mlops_assets.terminal import console, print_table
from mlops_assets.training_cli import reproduce, train

if TYPE_CHECKING:
    from mlops_assets.declarations import ModelPipeline
    from mlops_assets.promotion import Promotion
    from resources.approvals import Verdict
    from resources.releases import ReleaseRecord, ReleaseStore

OURS = ("feature_assets", "mlops_assets", "model_assets", "resources", "sensors")
app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Models as assets: from raw data to a monitored endpoint."
)
new = typer.Typer(no_args_is_help=True, help="Write the file of a new declaration.")
app.add_typer(new, name="new")
app.add_typer(features, name="features")
app.add_typer(artifacts, name="artifacts")
app.add_typer(compute, name="compute")
app.command()(alerts)
app.command()(history)
app.command()(notify)
app.command()(runs)
app.command()(migrate)
app.command()(train)
app.command()(reproduce)

Model = Annotated[str, typer.Argument(help="The model, as <team>/<name>, e.g. flights/late_arrival")]
Version = Annotated[str, typer.Argument(help="A registered version, e.g. 3")]
Reason = Annotated[str, typer.Option("--why", help="Kept with the decision", show_default=False)]
Source = Annotated[str, typer.Argument(help="A source that declares a stream, as <team>/<name>")]
Json = Annotated[bool, typer.Option("--json", help="For a program")]
Why = Annotated[str, typer.Option(help="Written into the history")]


def main() -> None:
    """Run the command line; an error that says what to do next is printed without its traceback."""
    from resources.environment import quiet_telemetry

    quiet_telemetry()
    try:
        app()
    except Exception as problem:
        if not _says_what_to_do(problem):
            raise
        typer.secho(" ".join([f"mlops: {problem}", *getattr(problem, "__notes__", ())]), fg="red", err=True)
        sys.exit(1)


def _says_what_to_do(problem: Exception) -> bool:
    """An error of ours says what was asked, what exists and what to do next; another's is a fault of the program."""
    return type(problem).__module__.partition(".")[0] in OURS


@app.command()
def demo() -> None:
    """The whole life of a model on a year of real flights, in one go."""
    from mlops_assets.demo import run_demo

    raise typer.Exit(run_demo())


@app.command()
def year(
    first: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="A Monday, by default 2013-04-01")
    ] = None,
    days: Annotated[int | None, typer.Option(min=11, help="How many, by default to the end of the year")] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Judge the days up to this one; go on another time")
    ] = None,
    rivals: Annotated[bool, typer.Option(help="Compare with never and weekly training")] = True,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget an earlier replay instead of going on with it")
    ] = False,
) -> None:
    """2013 day by day under Dagster's own daemons, with what goes wrong in a year; state lies beside MLOPS_HOME."""
    from mlops_assets.year.story import run_year

    first_day, last_day = (given.date() if given else None for given in (first, until))
    raise typer.Exit(run_year(first_day, days, last_day, rivals=rivals, fresh=fresh))


@app.command()
def up() -> None:
    """Start Dagster, MLflow and the endpoints; Ctrl-C stops them all."""
    from mlops_assets.processes import up as start

    raise typer.Exit(start())


@app.command()
def promote(
    model: Model,
    version: Annotated[
        str | None,
        typer.Option(help="A registered version; by default the challenger, else the newest that passed"),
    ] = None,
    why: Why = "promoted by hand",
) -> None:
    """Give a version all traffic and make it the champion; where approval is needed, that is yours."""
    from mlops_assets.approval import tell
    from resources.environment import resources_for

    pipeline, promotion = _of(model)
    _tell(pipeline, promotion.promote(pipeline, version, by=_user(), why=why))
    tell(pipeline, promotion, resources_for()["alerts"])


@app.command()
def rollback(model: Model, why: Why = "rolled back by hand") -> None:
    """Return to the release before, at once."""
    pipeline, promotion = _of(model)
    _tell(pipeline, promotion.rollback(pipeline, by=_user(), why=why))


@app.command()
def approve(model: Model, version: Version, why: Reason) -> None:
    """Say yes to a candidate that waits for it; it is released then."""
    _decide(model, version, "approved", why)


@app.command()
def refuse(model: Model, version: Version, why: Reason) -> None:
    """Say no to a candidate that waits for approval; the champion stays."""
    _decide(model, version, "refused", why)


@app.command()
def approvals(
    model: Annotated[str | None, typer.Argument(help="By default every model")] = None,
    waiting: Annotated[bool, typer.Option("--waiting", help="Only what may still be decided")] = False,
    as_json: Json = False,
) -> None:
    """Which candidates wait for a person's word, and who said what about the others."""
    from mlops_assets.history import clock
    from resources.approvals import ApprovalStore

    store = ApprovalStore()
    store.expire(_of(model)[0].id if model else None)
    found = store.waiting(model) if waiting else store.history(model)
    if as_json:
        _print_json([vars(one) for one in found])
        return
    print_table(
        "Approvals",
        ["model", "version", "state", "asked at (UTC)", "expires", "decided at", "by", "why"],
        [
            (
                *(one.model, one.version, one.state, clock(one.asked_at), clock(one.expires_at)),
                *(clock(one.decided_at), one.by, one.why or one.asked_why),
            )
            for one in found
        ],
    )


@app.command()
def traffic(
    model: Model,
    challenger: Annotated[
        str | None, typer.Option(help="A version beside the champion until it is changed: VERSION=PERCENT, e.g. 3=20")
    ] = None,
    champion_only: Annotated[bool, typer.Option("--champion-only", help="End a canary or a split")] = False,
    shadow: Annotated[
        str | None, typer.Option(help="A version that answers too, but whose answers are only logged")
    ] = None,
    no_shadow: Annotated[bool, typer.Option("--no-shadow", help="End the shadow")] = False,
    why: Why = "changed by hand",
) -> None:
    """Who gets the traffic, since when, by whom and why, and what each serving process does; or change it."""
    if (challenger and champion_only) or (shadow and no_shadow):
        raise typer.BadParameter("--challenger and --champion-only, or --shadow and --no-shadow, exclude each other.")
    split = _share(challenger) if challenger else None
    pipeline, promotion = _of(model)
    by = _user()
    if split:
        _tell(pipeline, promotion.split(pipeline, *split, by=by, why=why))
    if champion_only:
        _tell(pipeline, promotion.champion_only(pipeline, by=by, why=why))
    if shadow:
        _tell(pipeline, promotion.shadow(pipeline, shadow, by=by, why=why))
    if no_shadow:
        _tell(pipeline, promotion.unshadow(pipeline, by=by, why=why))
    if not (split or champion_only or shadow or no_shadow):
        _show_traffic(promotion.releases, pipeline.id)


@app.command()
def ingest(
    source: Source,
    once: Annotated[bool, typer.Option(help="End when no more events come")] = False,
) -> None:
    """Bring a source, and the views that read it, up to date from its stream, until Ctrl-C."""
    from mlops_assets.streaming import ingest as start
    from resources.environment import prepare_home

    prepare_home()
    start(source, once=once)


@app.command()
def produce(source: Source) -> None:
    """Append events to a source's stream: one JSON object a line, from standard input."""
    from mlops_assets.streaming import produce as append

    events = [_event(number, line) for number, line in enumerate(sys.stdin, 1) if line.strip()]
    typer.echo(f"{append(source, events)} events appended")


def _event(number: int, line: str) -> dict[str, Any]:
    import orjson

    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(f"line {number} is not JSON ({error}). Nothing was appended; mend it.") from error
    if not isinstance(event, dict):
        raise typer.BadParameter(f"line {number} is no JSON object. Nothing was appended; mend it.")
    return event


@app.command()
def lineage(
    name: Annotated[str, typer.Argument(help="A model or, with --partition, a table, as <team>/<name>")],
    partition: Annotated[
        str | None, typer.Option(help="Of a table: what used its rows, from training sets to answers")
    ] = None,
    as_json: Json = False,
) -> None:
    """Of a model, each link of the chain from the raw tables to the endpoint; of a partition, what used its rows."""
    from mlops_assets.catalog import gather
    from mlops_assets.lineage import lineage_tree
    from resources.environment import prepare_home

    if partition is not None:
        _touched(name, partition, as_json)
        return
    pipeline = gather().model(name)
    prepare_home()
    console().print(lineage_tree(pipeline))


def _touched(table: str, partition: str, as_json: bool) -> None:
    from mlops_assets.catalog import UnknownDeclarationError
    from mlops_assets.partition_lineage import touched_by
    from mlops_assets.receipt_text import show_touched
    from mlops_assets.records import records

    with records() as known:
        if table not in known.catalog.tables:
            raise UnknownDeclarationError.of("table", table, known.catalog.tables)
        document = touched_by(known.catalog.tables[table], partition, known)
    _print_json(document) if as_json else show_touched(document)


@app.command()
def queue(as_json: Json = False) -> None:
    """Which runs wait, in which order, and each one's reason."""
    from dataclasses import asdict

    import dagster as dg

    from mlops_assets.waiting import COLUMNS, waiting
    from resources.environment import prepare_home

    prepare_home()
    with dg.DagsterInstance.get() as instance:
        line = waiting(instance)
    if as_json:
        _print_json([asdict(one) for one in line])
    elif line:
        print_table("Waiting runs", COLUMNS, [one.cells for one in line])
    else:
        typer.echo("No run waits.")


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(help="The id in the answer, or the event's own that the caller gave")],
    model: Annotated[str | None, typer.Option(help="Look at this model's answers alone")] = None,
    as_json: Json = False,
) -> None:
    """The receipt of an answer: release, Bento, version, training set, and the rows that it was made of."""
    from mlops_assets.receipt_text import show_receipt
    from mlops_assets.receipts import receipts
    from mlops_assets.records import records

    with records() as known:
        documents = receipts(request_id, known, model)
    if as_json:
        _print_json(documents)
        return
    for document in documents:
        show_receipt(document)


def _print_json(document: Any) -> None:
    import json

    typer.echo(json.dumps(document, indent=2, default=str))


@new.command("model")
def new_model(
    name: Annotated[str, typer.Argument(help="The model, as <team>/<name>")],
    labels: Annotated[
        str | None, typer.Option(help="The label table, as <team>/<name>; by default the team's first")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The target; by default the label table's first")] = None,
) -> None:
    """Write `model_assets/<team>/<name>.py`: a model that materializes as it stands."""
    from mlops_assets.scaffold import write_model

    typer.echo(f"Wrote {write_model(name, labels, label)}")


@new.command("features")
def new_features(
    name: Annotated[str, typer.Argument(help="The feature view, as <team>/<name>")],
    source: Annotated[
        str | None, typer.Option(help="The table it reads; by default the team's first with a time")
    ] = None,
) -> None:
    """Write `feature_assets/<team>/<name>.py`: a feature view that materializes as it stands."""
    from mlops_assets.scaffold import write_features

    typer.echo(f"Wrote {write_features(name, source)}")


def _decide(model: str, version: str, verdict: Verdict, why: str) -> None:
    from mlops_assets.approval import decide
    from resources.environment import prepare_home, resources_for

    prepare_home()
    pipeline, promotion = _of(model)
    word = decide(pipeline, version, verdict, promotion, resources_for()["alerts"], by=_user(), why=why)
    typer.echo(f"{model}: version {version} is {word.state} by {word.by} since {word.decided_at[:19]}: {word.why}")


def _of(model: str) -> tuple[ModelPipeline, Promotion]:
    from mlops_assets.catalog import gather
    from mlops_assets.promotion import Promotion

    return gather().model(model), Promotion.here()


def _share(challenger: str) -> tuple[str, int]:
    """The version and the percent of `3=20`."""
    version, _, percent = challenger.partition("=")
    if not version.isdecimal() or not percent.isdecimal():
        raise typer.BadParameter(f"--challenger {challenger!r} is not VERSION=PERCENT; write e.g. --challenger 3=20.")
    return version, int(percent)


def _show_traffic(releases: ReleaseStore, model: str) -> None:
    """From the record and the reports of the serving processes alone: it works while MLflow and Dagster are down."""
    from mlops_assets.traffic import COLUMNS, SERVING_COLUMNS, remarks, reports, standings
    from resources.serving_status import statuses

    record = releases.current(model)
    shares = [one.cells for one in standings(record, releases.history(model))]
    print_table(f"Traffic of {model}, revision {record.revision}", COLUMNS, shares)
    for remark in remarks(record):
        typer.echo(remark)
    if serving := statuses(releases.path(model)):
        print_table(f"Serving processes of {model}", SERVING_COLUMNS, reports(record, serving))
    else:
        typer.echo("No serving process reports; start them with `mlops up`.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that has no name
        return f"uid {os.getuid()}"


def _tell(model: ModelPipeline, record: ReleaseRecord) -> None:
    """Say who answers now, to the reader and to Dagster; a Dagster that is down undoes no rollback."""
    import dagster as dg
    from sqlalchemy.exc import SQLAlchemyError

    from mlops_assets.links.endpoint import moved
    from resources.environment import prepare_home

    for variant in record.variants:
        share = "is asked too, unheard" if variant.role == "shadow" else f"gets {variant.weight} %"
        typer.echo(f"{record.model}: {variant.role} {variant.release} (version {variant.version}) {share}")
    try:
        prepare_home()
        with dg.DagsterInstance.get() as instance:
            for event in moved(model, record):
                instance.report_runless_asset_event(event)
    except (dg.DagsterError, SQLAlchemyError, OSError) as problem:
        typer.secho(f"It is done, but Dagster could not be told: {problem}", fg="yellow", err=True)


if __name__ == "__main__":
    main()
