"""`mlops runs` and `mlops migrate`: what was trained, found by what it reached, live or archived.

Without options, the candidates of a model as the registry holds them. With any, runs in MLflow: by a condition, in an
order, compared by what they ran on, or with the history of a metric. The conditions are MLflow's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_assets.terminal import print_table

if TYPE_CHECKING:
    from resources.mlflow import MlflowResource
    from resources.tracking.runs import Run

NOT_A_TRIAL = "tags.`mlflow.parentRunId` IS NULL"
METRIC = re.compile(r"\bmetrics?\.(?:`([^`]+)`|\"([^\"]+)\"|([\w./\-]+))")
DIRECTION = re.compile(r"\s(asc|desc)\s*$", re.IGNORECASE)
SECONDS, HARDWARE = "seconds_total", "hardware"


def runs(
    model: Annotated[
        str | None, typer.Argument(help="The model, as <team>/<name>; without one and with an option, all of them")
    ] = None,
    where: Annotated[
        str, typer.Option(help="A condition, e.g. \"metrics.holdout_roc_auc > 0.7 and params.max_depth = '5'\"")
    ] = "",
    order_by: Annotated[
        str, typer.Option(help="E.g. metrics.holdout_roc_auc; the largest first, unless it ends with ASC")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many at most")] = 50,
    compare: Annotated[
        str | None,
        typer.Option(help="Compare by a tag or parameter; by hardware: which technique does best on which device"),
    ] = None,
    history: Annotated[
        str | None,
        typer.Option(help="The course of a metric in each run, archived or not; --json for all of it"),
    ] = None,
    trials: Annotated[bool, typer.Option("--trials", help="The trials of searches too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For a program")] = False,
) -> None:
    """Candidates of a model: cutoff, version, metric, gate; or its runs by condition, in order, compared."""
    asked = bool(where or order_by or compare or history or trials)
    if model is None and not asked:
        raise typer.BadParameter("Say a MODEL, or what to look for: --where, --order-by, --compare, --history.")
    if model is not None and not asked:
        _candidates(model, limit, as_json)
        return
    from resources.environment import resources_for
    from resources.tracking.runs import found

    mlflow = resources_for()["mlflow"]
    conditions = [part for part in (where, "" if trials else NOT_A_TRIAL) if part]
    order = [order_by if DIRECTION.search(order_by) else f"{order_by} DESC"] if order_by else []
    told = found(mlflow, [model] if model else None, " and ".join(conditions), order, limit)
    mentioned = list(dict.fromkeys(next(filter(None, name)) for name in METRIC.findall(f"{order_by} {where}")))
    if history:
        _history(mlflow, history, told, as_json)
    elif compare == HARDWARE:
        _compare_hardware(told, lambda of: mentioned[0] if mentioned else _gate_metric(of, told), as_json)
    elif compare:
        _compare(told, compare, mentioned[0] if mentioned else _gate_metric(model, told), as_json)
    else:
        _list(told, mentioned or [_gate_metric(model, told)], model, as_json)


def migrate(
    database: Annotated[
        str | None,
        typer.Option(help="The tracking server's own database; by default MLOPS_MLFLOW_DATABASE, or this home's"),
    ] = None,
) -> None:
    """Bring our indices to MLflow's database; harmless when repeated, also after `mlflow db upgrade`."""
    from sqlalchemy.engine import make_url

    from resources.environment import resources_for
    from resources.tracking.archive import NoDatabaseError
    from resources.tracking.migration import applied
    from resources.tracking.migration import migrate as bring

    mlflow: MlflowResource = resources_for()["mlflow"]
    url = database or mlflow.database
    if url is None:
        raise NoDatabaseError.of(mlflow.uri)
    created = bring(url)
    where = make_url(url).render_as_string(hide_password=True)
    typer.echo(f"{where}: created {', '.join(created)}" if created else f"{where}: up to date")
    for version, at in applied(url):
        typer.echo(f"migration {version}, first applied {at}")


def _candidates(model: str, limit: int, as_json: bool) -> None:
    """The newest versions, the oldest of them first, as they are told; archived ones where the live are fewer."""
    from mlops_assets.catalog import gather
    from resources.environment import resources_for
    from resources.tracking.archive import archived_versions

    pipeline, mlflow = gather().model(model), resources_for()["mlflow"]
    name = pipeline.registered_name
    live = {int(item.version): (item.run_id, dict(item.tags)) for item in mlflow.versions(name, limit=limit)}
    old = {row["version"]: (row["run_id"], row["tags"]) for row in archived_versions(name)}
    told = [(version, *(old | live)[version]) for version in sorted({*old, *live})[-limit:]]
    if as_json:
        columns = ("version", "run_id", "tags", "archived")
        _print_json([dict(zip(columns, (*row, row[0] not in live), strict=True)) for row in told])
        return
    names = ("cutoff", "metric", "gate", "refused_because", "bento")
    print_table(
        f"Candidates of {model}",
        ["version", "cutoff", pipeline.gate.metric, "gate", "why", "bento", "MLflow run"],
        [
            (version, *(tags.get(name, "") for name in names), run if version in live else f"{run} (archived)")
            for version, run, tags in told
        ],
    )


def _gate_metric(model: str | None, runs: Sequence[Run]) -> str:
    """The metric on the holdout that the model's gate goes by; of any model, the first that a run has."""
    from mlops_assets.catalog import UnknownDeclarationError, gather

    try:
        return f"holdout_{gather().model(model).gate.metric}" if model else _first_metric(runs)
    except UnknownDeclarationError:
        return _first_metric(runs)


def _first_metric(runs: Sequence[Run]) -> str:
    return next((name for run in runs for name in sorted(run.metrics) if name.startswith("holdout_")), "metric")


def _list(runs: Sequence[Run], metrics: Sequence[str], model: str | None, as_json: bool) -> None:
    if as_json:
        _print_json([vars(run) for run in runs])
        return
    columns = ["started (UTC)", *([] if model else ["experiment"]), "run", "version", "status", *metrics, "MLflow run"]
    print_table(
        f"{len(runs)} runs" + (f" of {model}" if model else ""),
        columns,
        [
            (
                _clock(run.started_at),
                *([] if model else [run.experiment]),
                run.name,
                run.version or "",
                run.status,
                *(_number(run.metrics.get(name)) for name in metrics),
                run.run_id,
            )
            for run in runs
        ],
    )


def _compare_hardware(runs: Sequence[Run], metric_of: Callable[[str], str], as_json: bool) -> None:
    """A line a technique on a device, the best of each device marked."""
    from dataclasses import asdict

    from mlops_assets.techniques import techniques

    told = techniques(runs, metric_of)
    if as_json:
        _print_json([asdict(one) for one in told])
        return
    columns = ["model", "device", "technique", "", "runs", "metric", "best", "median", "seconds", "rows/s"]
    rows = [
        (
            *(one.model, one.device, one.technique, "best" if one.is_best else "", one.runs, one.metric),
            *map(_number, (one.best, one.median, one.seconds, one.rows_per_second)),
            *map(_number, (one.peak_memory_gb, one.gpu_peak_memory_gb)),
            one.hot or "",
        )
        for one in told
    ]
    print_table(f"{len(runs)} runs by hardware", [*columns, "GB", "GPU GB", "slowed by heat"], rows)


def _compare(runs: Sequence[Run], key: str, metric: str, as_json: bool) -> None:
    """A line a group: how many runs, what they reached, how long they took."""
    from statistics import median

    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.tags.get(key) or run.params.get(key) or "(none)", []).append(run)

    def middle(of: Sequence[Run], name: str, what: Callable[[list[float]], float] = median) -> float | None:
        values = [run.metrics[name] for run in of if name in run.metrics]
        return what(values) if values else None

    told = [
        {
            key: group,
            "runs": len(of),
            f"lowest {metric}": middle(of, metric, min),
            f"median {metric}": middle(of, metric),
            f"highest {metric}": middle(of, metric, max),
            f"median {SECONDS}": middle(of, SECONDS),
        }
        for group, of in groups.items()
    ]
    if as_json:
        _print_json(told)
        return
    columns = list(told[0]) if told else [key]
    rows = [[_number(value) if isinstance(value, float) else value or "" for value in one.values()] for one in told]
    print_table(f"{len(runs)} runs by {key}", columns, rows)


def _history(mlflow: MlflowResource, metric: str, runs: Sequence[Run], as_json: bool) -> None:
    import polars as pl

    points = mlflow.history(metric, [run.run_id for run in runs])
    if as_json:
        _print_json(points.rename({"run_uuid": "run_id"}).to_dicts())
        return
    value = pl.col("value")
    courses = points.group_by("run_uuid", maintain_order=True).agg(
        pl.len(), pl.col("step").max(), value.first().alias("first"), value.last().alias("last"),
        value.min().alias("least"), value.max().alias("most"),
    )  # fmt: skip
    values = ("first", "last", "least", "most")
    by_run = {row["run_uuid"]: row for row in courses.iter_rows(named=True)}
    rows = [
        (
            run.name,
            row["len"],
            row["step"],
            *(_number(row[name]) for name in values),
            run.run_id,
        )
        for run in runs
        if (row := by_run.get(run.run_id))
    ]
    columns = ["run", "values", "last step", "first", "last", "least", "most", "MLflow run"]
    print_table(f"{metric} in {len(rows)} of {len(runs)} runs", columns, rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _clock(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M}"


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2, default=str))
