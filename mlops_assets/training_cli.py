"""`mlops train` and `mlops reproduce`: a candidate of a cutoff, now; and a version made again, to be compared."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from mlops_assets.terminal import console, print_table

if TYPE_CHECKING:
    import dagster as dg
    from rich.console import Console

    from mlops_assets.declarations import ModelPipeline
    from mlops_assets.reproduce import Reproduction

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
PROCESS = "mlops/process"  # a tag of runs that this command does itself
SAYS = {True: "yes", False: "NO", None: "?"}
Model = Annotated[str, typer.Argument(help="The model, as <team>/<name>, e.g. flights/late_arrival")]


class UnknownCutoffError(LookupError):
    """A training was asked for as of a day that is no cutoff of the model, or has not come."""

    @classmethod
    def of(cls, model: str, asked: str, known: Sequence[str]) -> Self:
        near = sorted(known, key=lambda day: abs(_ordinal(day) - _ordinal(asked)))[:3] if _ordinal(asked) else []
        span = f"{known[0]} to {known[-1]}" if known else "none has come yet"
        fix = f"Nearest are {', '.join(sorted(near))}." if near else "Write it as YYYY-MM-DD."
        return cls(f"Model {model!r} has no cutoff {asked!r} (its {len(known)} cutoffs: {span}). {fix}")


def train(
    model: Model,
    cutoff: Annotated[str, typer.Option(help="The day that the world is known up to, a cutoff of the model")],
) -> None:
    """Train a model as of a cutoff and release it if it passes: the training job, run here and recorded in Dagster."""
    import dagster as dg

    from mlops_assets.catalog import gather
    from mlops_assets.definitions import defs
    from mlops_assets.retraining import training_job_name
    from resources.environment import prepare_home

    pipeline = gather().model(model)
    if not pipeline.cutoffs.has_partition_key(cutoff):
        raise UnknownCutoffError.of(model, cutoff, pipeline.cutoffs.get_partition_keys())
    prepare_home()
    shown = console(markup=False)
    with dg.DagsterInstance.get() as instance, _progress(shown):
        _end_dead_runs(instance)
        shown.print(f"Training {model} as of {cutoff}; Ctrl-C ends it, and the same command goes on from there")
        job = defs.resolve_job_def(training_job_name(pipeline))
        tags = {PROCESS: _process(os.getpid())}
        result = job.execute_in_process(QUIET, instance, partition_key=cutoff, tags=tags, raise_on_error=False)
    _show_run(pipeline, result)
    raise typer.Exit(0 if result.success else 1)


def _end_dead_runs(instance: dg.DagsterInstance) -> None:
    """A run of this command whose process was killed still says that it goes, and holds the place of the next.

    Dagster's monitoring looks after the runs that it launched; nobody does after these.
    """
    import dagster as dg

    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        host, pid, _ = (*run.tags.get(PROCESS, "").split(), "", "", "")[:3]
        if host == socket.gethostname() and run.tags[PROCESS] != _process(int(pid)):
            instance.report_run_failed(run, "The process of `mlops train` is gone.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _process(pid: int) -> str:
    """This machine, the process, and when it began: a number is given again to another one."""
    import psutil

    try:
        began = f"{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        began = "gone"
    return f"{socket.gethostname()} {pid} {began}"


def reproduce(
    model: Model,
    version: Annotated[str, typer.Argument(help="A registered version, e.g. 3")],
    as_json: Annotated[bool, typer.Option("--json", help="For a program")] = False,
) -> None:
    """Make a version again from its record, publishing nothing, and say what is equal and what is not, and why.

    The exit status is 0 when the model is the very same, 1 when it is not.
    """
    from mlops_assets.records import records
    from mlops_assets.reproduce import reproduce as made_again

    with records() as known:
        pipeline = known.catalog.model(model)
        with _progress(None if as_json else console(markup=False)):
            found = made_again(pipeline, version, known)
    typer.echo(json.dumps(found.document(), indent=2, default=str)) if as_json else _show(found)
    raise typer.Exit(0 if found.equal else 1)


def _show(found: Reproduction) -> None:
    rows = [(SAYS[item.equal], item.what, _cell(item.recorded), _cell(item.now), item.why) for item in found.items]
    title = f"{found.model} version {found.version} (cutoff {found.cutoff}), made again"
    print_table(title, ["equal", "what", "recorded", "now", "why"], rows)
    for remark in found.remarks:
        typer.echo(remark)
    typer.echo("The model is the very same." if found.equal else "The model is another one.")


def _cell(value: Any) -> str:
    """Hashes and settings in short; --json has them whole."""
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..." if " " not in text else f"{text[:37]}..."


def _show_run(model: ModelPipeline, result: dg.ExecuteInProcessResult) -> None:
    """The links that ran, what the candidate reached, and the errors of what failed."""
    key = [model.team, model.name, "candidate"]
    for event in result.get_asset_materialization_events():
        if event.asset_key is not None and list(event.asset_key.path) == key:
            told: dict[str, Any] = {name: value.value for name, value in event.materialization.metadata.items()}
            typer.echo(f"version {told['version']}: {told['metric_name']} {told['metric']:.4f}, {told['mlflow_run']}")
            if told["trials"] > 1:
                typer.echo(_search(told))
    for check in result.get_asset_check_evaluations():
        verdict = "passed" if check.passed else "warned" if check.severity.value == "WARN" else "FAILED"
        typer.echo(f"{verdict}  {check.check_name}: {check.description}")
    for event in result.get_step_failure_events():
        error = event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        typer.secho(f"{event.step_key}: {error.message.strip() if error else 'failed'}", fg="red", err=True)
    done = [event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key]
    how = "succeeded" if result.success else "failed"
    typer.echo(f"Dagster run {result.run_id} {how}: {', '.join(done) or 'nothing was made'}")


def _search(told: Mapping[str, Any]) -> str:
    """What a search was, and what its workers gained: the seconds that its trials took alone and together."""
    of = {name.partition("/")[2]: value for name, value in told.items() if name.startswith("search/")}
    trials = f"{told['trials']} trials, {of['pruned']} given up, {of['before']} known before"
    gained = f"{of['trial_seconds']:.1f} s of trials in {of['seconds']:.1f} s, {of['speed_up']:.2f} at a time"
    return f"search: {trials}, {of['workers']} at once: {gained}"


class _Lines(logging.Handler):
    """Prints what a training logs: its rows, each trial, what it goes on from."""

    def __init__(self, shown: Console) -> None:
        super().__init__(logging.INFO)
        self._console = shown

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), style="dim")


@contextmanager
def _progress(shown: Console | None) -> Iterator[None]:
    if shown is None:
        yield
        return
    logger, handler = logging.getLogger("mlops_assets"), _Lines(shown)
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _ordinal(day: str) -> int:
    """The number of a day, 0 for what is none."""
    from datetime import date

    try:
        return date.fromisoformat(day[:10]).toordinal()
    except ValueError:
        return 0
