"""What people would do instead: never train again, or train every Monday and release what comes out.

Both answer the very flights that the year's endpoint answered, from the features that it used. The weekly trainings run
in a process of their own beside the replay, each once the days before its cutoff were lived; its seconds of CPU are
what it costs. Nothing of theirs is registered.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.catalog import asset_key
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links.spec import link_key
from mlops_assets.retraining import training_job_name
from mlops_assets.year.callers import midnight
from mlops_assets.year.journal import Journal
from mlops_assets.year.launcher import cpu_seconds, launched
from resources.environment import home

if TYPE_CHECKING:
    import polars as pl

DAY, WEEK = timedelta(days=1), timedelta(weeks=1)


@dataclass(frozen=True)
class Fared:
    """How a way of working did on the flights whose outcome is known. `cpu_seconds` is of its trainings."""

    way: str
    flights: int
    metric: float
    trainings: int
    cpu_seconds: float
    by_week: dict[str, float]


def weekly_cutoffs(first: date, last: date) -> list[date]:
    """The Mondays after the first training, up to the last day."""
    monday = first + timedelta(days=-first.weekday() % 7)
    return [day for i in range(60) if first < (day := monday + WEEK * i) <= last]


@contextmanager
def training_weekly(first: date, last: date) -> Iterator[subprocess.Popen[bytes]]:
    """The process that trains every week for the time of the block, at the lowest priority."""
    log = home() / "logs" / "rivals.log"
    command = ["nice", "-n", "10", sys.executable, "-m", __name__, str(first), str(last)]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()  # what it was training is trained again
        process.wait()


def train_weekly(model: ModelPipeline, first: date, last: date) -> None:
    """Train as of each Monday as soon as the days before it were lived; what is there is not trained again."""
    for cutoff in weekly_cutoffs(first, last):
        while (days := Journal.here().read()) == [] or date.fromisoformat(days[-1].day) < cutoff - DAY:
            time.sleep(2)
        if not (_place(cutoff) / "cost.json").exists():
            train(model, cutoff)


def train(model: ModelPipeline, cutoff: date) -> None:
    """One training as of a cutoff, by the function that candidates are trained with."""
    from mlops_assets import training
    from mlops_assets.links.training_set import known_by, point_in_time_rows, stored_views
    from resources.environment import resources_for

    began, place, scan = cpu_seconds(), _place(cutoff), resources_for()["lake"].scan
    place.mkdir(parents=True, exist_ok=True)
    frames = {name: scan(asset_key(view)) for name, view in stored_views(model).items()}
    spine = known_by(scan(asset_key(model.labels)), midnight(cutoff), model.split.window)
    point_in_time_rows(model, spine, frames).write_parquet(place / "rows.parquet")
    training.train(training.training_arguments(model, midnight(cutoff), place / "rows.parquet", place))
    (place / "rows.parquet").unlink()
    (place / "cost.json").write_text(json.dumps({"cpu_seconds": cpu_seconds() - began}))


def fared(model: ModelPipeline, days: Sequence[str]) -> list[Fared]:
    """The loop, never and weekly, on the same flights."""
    import polars as pl

    answers = known_answers(model, days)
    cutoffs = sorted(path.parent.name for path in (home() / "rivals").glob("*/cost.json"))
    first = answers["release"][0]
    never = bundle_of(first)
    weekly = [(date.fromisoformat(name), home() / "rivals" / name / "bundle") for name in cutoffs]
    alone = answers.with_columns(prediction=pl.Series(_predicted(model, never, answers)))
    parts = [
        part.with_columns(prediction=pl.Series(_predicted(model, _newest(weekly, day, never), part)))
        for (day,), part in answers.group_by(pl.col("at").dt.date(), maintain_order=True)
    ]
    costs = [json.loads((home() / "rivals" / name / "cost.json").read_text())["cpu_seconds"] for name in cutoffs]
    loop_trainings, loop_cost = _cost_of_the_loop(model)
    return [
        _fared("the closed loop", model, answers, loop_trainings, loop_cost),
        _fared("never again", model, alone, 0, 0.0),
        _fared("every Monday", model, pl.concat(parts), len(cutoffs), sum(costs)),
    ]


def known_answers(model: ModelPipeline, days: Sequence[str]) -> pl.DataFrame:
    """The answers with their truth, where it became known."""
    import polars as pl

    from resources.environment import resources_for

    lake = resources_for()["lake"]
    answers = lake.scan(link_key(model, "predictions"), list(days))
    truth = lake.scan(asset_key(model.labels)).select(
        request_id=model.labels.key, truth=pl.col(model.label).cast(pl.Float64)
    )
    return answers.join(truth, on="request_id").sort("at", "request_id").collect()


def bundle_of(release: str) -> Path:
    from resources.bentos import BentoStore

    return BentoStore().path(release)


def _newest(weekly: Sequence[tuple[date, Path]], day: Any, before: Path) -> Path:
    return next((path for cutoff, path in reversed(weekly) if cutoff <= day), before)


def _predicted(model: ModelPipeline, bundle: Path, rows: pl.DataFrame) -> Any:
    from mlops_assets.input_schema import InputSchema
    from mlops_assets.trainers import load_predictor

    schema = InputSchema.from_json(json.loads((bundle / "schema.json").read_text()))
    return load_predictor(model.trainer.framework, bundle / "model")(schema.encode_frame(rows))


def _fared(way: str, model: ModelPipeline, rows: pl.DataFrame, trainings: int, cost: float) -> Fared:
    import polars as pl

    from mlops_assets.metrics import METRICS

    def metric(part: pl.DataFrame) -> float:
        return float(METRICS[model.gate.metric].compute(part["truth"].to_numpy(), part["prediction"].to_numpy()))

    weeks = rows.group_by(pl.col("at").dt.truncate("1w").dt.date(), maintain_order=True)
    by_week = {str(week): metric(part) for (week,), part in weeks if part["truth"].n_unique() > 1}
    return Fared(way, rows.height, metric(rows), trainings, cost, by_week)


def _cost_of_the_loop(model: ModelPipeline) -> tuple[int, float]:
    """Retrainings, and the seconds of CPU of their runs whole: training set, fit, gate, Bento and release."""
    candidate = link_key(model, "candidate").to_user_string()
    job = training_job_name(model)
    costs = [run["cpu_seconds"] for run in launched() if candidate in run["assets"] or run["job"] == job][1:]
    return len(costs), sum(costs)


def _place(cutoff: date) -> Path:
    return home() / "rivals" / str(cutoff)


def main() -> None:
    from mlops_assets.year.definitions import model

    train_weekly(model, date.fromisoformat(sys.argv[1]), date.fromisoformat(sys.argv[2]))


def written(results: Sequence[Fared]) -> str:
    return json.dumps([asdict(one) for one in results], indent=2)


if __name__ == "__main__":
    main()
