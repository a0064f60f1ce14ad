"""Training as pure work: JSON in, JSON out, files by path; what the compute resource carries elsewhere.

The rows before the cutoff are cut into train | validation | holdout, in time order. The search sees
train and validation; the holdout is predicted once, by the model as it was saved and loaded again, so
that what is judged is what will be served. A row at or after the cutoff is never read.

A training that was killed is taken up again by the next one that is given the same directory and is made from the
same: it keeps the trials that ended, and each fit goes on from its last checkpoint, to the very same model.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.checkpoints import MACHINE, TRIALS, Progress, end, ended, publish, take_up
from mlops_assets.fields import Field
from mlops_assets.input_schema import InputSchema
from mlops_assets.manifest import machine_manifest, made_from
from mlops_assets.metrics import METRICS, metrics_of
from mlops_assets.newcomers import Newcomers
from mlops_assets.search import Asked, Judged, There, Watch, best_trial
from mlops_assets.search import tried as tried_here
from mlops_assets.trainers import Place, Trainer, load_predictor, trainer_named
from resources.hardware import Device, this_machine
from resources.hardware.apple import leave_room
from resources.hardware.usage import metered

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from mlops_assets.declarations import Checkpoint, ModelPipeline, Search

EVENT_TIMESTAMP = "event_timestamp"
PREDICTION = "prediction"
GOLDEN_ROWS = 20
BASELINE_ROWS = 20_000

logger = logging.getLogger(__name__)


class TrainingDataError(ValueError):
    """The training set cannot train this model."""

    @classmethod
    def of(cls, model: str, what: str, problem: str, fix: str) -> Self:
        return cls(f"Training {model}: {what} {problem}. {fix}")


@dataclass(frozen=True)
class Parts:
    """The rows of a training set by what they are for, each in time order."""

    train: pl.DataFrame
    validation: pl.DataFrame
    holdout: pl.DataFrame

    @property
    def by_name(self) -> dict[str, pl.DataFrame]:
        return {"train": self.train, "validation": self.validation, "holdout": self.holdout}

    @property
    def learnable(self) -> pl.DataFrame:
        """Everything but the holdout: what the final model is fitted on."""
        import polars as pl

        return pl.concat([self.train, self.validation])


@dataclass(frozen=True)
class Task:
    """What is to be trained, read from the arguments and judged: nothing here is empty or unusable."""

    arguments: Mapping[str, Any]
    trainer: Trainer
    parts: Parts
    schema: InputSchema
    newcomers: Newcomers | None
    made_from: Mapping[str, Any]
    device: Device

    @classmethod
    def of(cls, arguments: Mapping[str, Any], made: Mapping[str, Any], device: Device) -> Self:
        import polars as pl

        trainer = _trainer(arguments)
        frame = pl.read_parquet(arguments["training_set"])
        newcomers = Newcomers(**arguments["newcomers"]) if arguments["newcomers"] else None
        needed = [*_holdout_columns(arguments), *(newcomers.columns if newcomers else [])]
        _refuse_missing_columns(arguments, frame.columns, needed)
        parts = split(frame, arguments)
        _refuse_unusable_labels(arguments, parts, trainer)
        schema = InputSchema.fit(parts.train, _fields(arguments["fields"]))
        return cls(arguments, trainer, parts, schema, newcomers, made, device)

    @property
    def seed(self) -> int:
        seed: int = self.arguments["search"]["seed"]
        return seed

    @property
    def search(self) -> dict[str, Any]:
        """As `_search_document` says it; records of before there were workers do not name them."""
        return {"workers": 1, "prune": None, "over": "auto", **self.arguments["search"]}

    def x(self, frame: pl.DataFrame) -> np.ndarray:
        return self.schema.encode_frame(frame)

    def y(self, frame: pl.DataFrame) -> np.ndarray:
        import polars as pl

        return frame[self.arguments["label"]].cast(pl.Float64).to_numpy()

    def fit(
        self,
        name: str,
        rows: pl.DataFrame,
        params: Mapping[str, Any],
        valid: pl.DataFrame | None = None,
        trial: int = 0,
        watch: Watch | None = None,
    ) -> Any:
        """A model of some rows; it goes on from the last checkpoint of the fit of that name and those parameters.

        With `valid` rows it is that of a trial; `watch`, who is told its scores, may end it.
        """
        made = {"training": self.made_from, "fit": name, "params": dict(params)}
        progress = Progress.of(Path(self.arguments["out"]), name, made, self.arguments["checkpoint"])
        x_valid, y_valid = (None, None) if valid is None else (self.x(valid), self.y(valid))
        trainer = self.trainer.placed(self._place(rows))
        progress.watch = watch
        with self._followed(trial) as progress.follower:
            return trainer.fit(
                self.x(rows), self.y(rows), x_valid, y_valid, dict(params), self.seed, progress, self.device
            )

    def _place(self, rows: pl.DataFrame) -> Place:
        times, arguments = rows[EVENT_TIMESTAMP].dt.convert_time_zone("UTC").sort(), self.arguments
        since, until = times[0].isoformat(), times[-1].isoformat()
        return Place(arguments["model"], self.schema.to_json(), arguments["key"], arguments["label"], since, until)

    def passes(self, model: Any) -> int:
        """How often a fit went over its rows: its trees, epochs or iterations, which is what early stopping finds."""
        return max(self.trainer.learned(model).values(), default=1)

    @contextmanager
    def _followed(self, trial: int) -> Iterator[Callable[[int, float], None] | None]:
        """Who is told the score of each round: the spool of the MLflow run, where the arguments name one."""
        from resources.tracking.spool import Spool

        if not (points := self.arguments.get("points")):
            yield None
            return
        with Spool(Path(points)) as spool:
            yield lambda at, score: spool.log(at, {f"trial {trial}/validation": score})

    def metrics(self, frame: pl.DataFrame, predictions: np.ndarray) -> dict[str, float]:
        """Every metric that the trainer's task has."""
        truth = self.y(frame)
        return {metric.name: metric.compute(truth, predictions) for metric in metrics_of(self.trainer.task)}


def training_arguments(pipeline: ModelPipeline, cutoff: datetime, training_set: Path, out: Path) -> dict[str, Any]:
    """What `train` needs to know of a pipeline, as JSON. `cutoff` is an instant with a zone."""
    times, trainer, newcomers = pipeline.split, pipeline.trainer, Newcomers.of(pipeline)
    return {
        "model": pipeline.id,
        "training_set": str(training_set),
        "out": str(out),
        "key": pipeline.labels.key,
        "label": pipeline.label,
        "fields": [{"name": name} | asdict(field) for name, field in pipeline.input_fields.items()],
        "slices": list(pipeline.gate.slices),
        "trainer": {"name": type(trainer).__name__, "params": dict(trainer.params)},
        "split": {
            "cutoff": cutoff.astimezone(UTC).isoformat(),
            "holdout_seconds": times.holdout.total_seconds(),
            "validation_seconds": times.validation.total_seconds(),
            "window_seconds": times.window.total_seconds() if times.window else None,
        },
        "accelerator": pipeline.accelerator,
        "search": _search_document(pipeline.search),
        "metric": pipeline.gate.metric,
        "checkpoint": _checkpoint_document(pipeline.checkpoint),
        "monitor": {
            "window_seconds": pipeline.monitor.window.total_seconds(),
            "slice_min_rows": pipeline.gate.slice_min_rows,
        },
        "newcomers": asdict(newcomers) if newcomers else None,
    }


def train(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Search, fit, judge and write one release bundle, as `training_arguments` says; tell what it took of the machine.

    Writes `<out>/machine.json` (device, machine) before it begins, `<out>/trials.jsonl` (a line a trial, as it ends),
    `<out>/holdout.parquet` (key, event_timestamp, label, slices, inputs, prediction) and `<out>/bundle/`; the last two
    only when all went well. What an interrupted training of the same left in `out` is used; one that ended is only
    told again.
    Raises NoSuchDeviceError before a row is read; TrainingDataError, InputError, MetricError or the trainer's own
    errors.
    """
    device = _device(arguments)
    out, made = Path(arguments["out"]), {**made_from(arguments), "device": device.kind}
    if told := ended(out, made):
        logger.info("%s: %s holds the ended training of the same", arguments["model"], out.name)
        return told
    take_up(out, made)
    logger.info("%s: on %s: %s", arguments["model"], device.kind, device)
    machine = {"device": asdict(device), "machine": machine_manifest()}
    publish(out / MACHINE, json.dumps(machine).encode())  # of one that dies it is known where
    told = machine | _watched(lambda: _trained(Task.of(arguments, made, device), out), arguments, device)
    told["made_from"] = made
    end(out, made, told)
    return told


def _trainer(arguments: Mapping[str, Any]) -> Trainer:
    return trainer_named(arguments["trainer"]["name"], **arguments["trainer"]["params"])


def _device(arguments: Mapping[str, Any]) -> Device:
    return _trainer(arguments).device(arguments["accelerator"], this_machine())


def _watched(work: Callable[[], dict[str, Any]], arguments: Mapping[str, Any], device: Device) -> dict[str, Any]:
    """What the work tells, and what it took of the machine that did it; of work that fails, its run is told at once."""
    leave_room(device)
    try:
        with metered(device) as usage:
            told = work()
    except BaseException:
        if points := arguments.get("points"):
            from resources.tracking.spool import Spool

            with Spool(Path(points)) as spool:
                spool.log(0, usage.metrics)
        raise
    used = usage.metrics | {"hardware/rows_per_second": told.pop("rows_per_second")}
    return {**told, "thermal": usage.thermal, "usage": used}


def _trained(task: Task, out: Path) -> dict[str, Any]:
    started, arguments = time.monotonic(), task.arguments
    metric, rows = METRICS[arguments["metric"]], {name: part.height for name, part in task.parts.by_name.items()}
    logger.info("%s: %s rows, %s inputs, %s", arguments["model"], rows, len(task.schema.columns), task.trainer)
    there = There("mlops_assets.training:tried", {"training": arguments, "made_from": task.made_from})
    found = best_trial(task.search, metric, partial(_judge, task), there, out / TRIALS)
    best = found.best
    searched = time.monotonic()
    model = task.fit("final", task.parts.learnable, best.params | best.learned)
    fitted = time.monotonic()
    predictions = _publish(task, model, out)
    cold = cold_starts(task, best.params | best.learned) if task.newcomers else None
    metrics = {"holdout": task.metrics(task.parts.holdout, predictions), "validation": best.metrics}
    logger.info("%s: %s %.5f on the holdout", arguments["model"], metric.name, metrics["holdout"][metric.name])
    return {
        "model": arguments["model"],
        "framework": task.trainer.framework,
        "task": task.trainer.task,
        "best_params": best.params,
        "params": {**task.trainer.params, **best.params, **best.learned},
        "metric": {"name": metric.name} | {part: values[metric.name] for part, values in metrics.items()},
        "metrics": metrics,
        "rows": rows,
        "rows_per_second": task.parts.learnable.height * task.passes(model) / (fitted - searched),
        "seconds": {"search": searched - started, "fit": fitted - searched, "total": time.monotonic() - started},
        "importance": dict(zip(task.schema.numbers, task.trainer.importance(model), strict=False)),
        "cold_starts": cold,
        "bundle": str(out / "bundle"),
        "holdout": str(out / "holdout.parquet"),
        "trials": str(out / TRIALS),
        "search": found.document,
    }


def split(frame: pl.DataFrame, arguments: Mapping[str, Any]) -> Parts:
    """[start, v) train, [v, h) validation, [h, cutoff) holdout, by event_timestamp; other rows are in no part."""
    import polars as pl

    times = arguments["split"]
    cutoff = datetime.fromisoformat(times["cutoff"])
    holdout = cutoff - timedelta(seconds=times["holdout_seconds"])
    validation = holdout - timedelta(seconds=times["validation_seconds"])
    at, window = pl.col(EVENT_TIMESTAMP), times["window_seconds"]
    # ties in time are ordered by key, so that the same rows give the same model in any order
    past = frame.filter(at < cutoff).sort(EVENT_TIMESTAMP, arguments["key"])
    recent = past.filter(at >= cutoff - timedelta(seconds=window)) if window else past
    return Parts(
        recent.filter(at < validation), recent.filter(at >= validation, at < holdout), recent.filter(at >= holdout)
    )


def evaluate(bundle: Path, frame: pl.DataFrame) -> pl.Series:
    """What a complete bundle (one with its manifest) predicts for the rows of `frame`: Float64, named `prediction`.

    `frame` holds the bundle's input columns by name, as `holdout.parquet` does for a bundle with the same inputs.
    """
    import polars as pl

    framework = json.loads((bundle / "manifest.json").read_text())["framework"]
    schema = InputSchema.from_json(json.loads((bundle / "schema.json").read_text()))
    return pl.Series(PREDICTION, load_predictor(framework, bundle / "model")(schema.encode_frame(frame)))


def cold_starts(task: Task, params: Mapping[str, Any]) -> dict[str, Any]:
    """The gate's metric on holdout rows of keys held out as new, with their stand-ins and with nulls.

    `{"rows", "stand_ins", "nulls"}`, or `{"rows", "problem"}` where there is nothing to judge by. One more fit, with
    the parameters that the search chose.
    """
    newcomers, metric = task.newcomers, METRICS[task.arguments["metric"]]
    if newcomers is None:
        raise ValueError(f"{task.arguments['model']} has no cold start to judge.")
    known, new = task.parts.learnable.filter(~newcomers.mark()), task.parts.holdout.filter(newcomers.mark())
    for rows, what in ((known, "what is left to learn from"), (new, "the holdout of new keys")):
        if problem := _label_problem(rows[task.arguments["label"]], task.trainer):
            return {"rows": new.height, "problem": f"{what} {problem}"}
    model = task.fit("cold-start", known, params)
    fed = {"stand_ins": newcomers.helped(new), "nulls": newcomers.unhelped(new)}
    values = {name: metric.compute(task.y(new), _as_served(task, model, task.x(rows))) for name, rows in fed.items()}
    return {"rows": new.height, **values}


def tried(given: Mapping[str, Any]) -> dict[str, Any]:
    """One trial of the search of a training, for a worker of it; the rows are loaded once."""
    training, asked = given["arguments"]["training"], Asked(**given["trial"])
    task = _task(json.dumps(training), json.dumps(given["arguments"]["made_from"]))
    metric, journal = METRICS[training["metric"]], Path(training["out"]) / TRIALS
    return tried_here(asked, task.search, metric, partial(_judge, task), journal)


@lru_cache(1)
def _task(arguments: str, made: str) -> Task:
    given, made_from = json.loads(arguments), json.loads(made)
    return Task.of(given, made_from, _device({**given, "accelerator": made_from["device"]}))


def _judge(task: Task, asked: Asked, watch: Watch | None) -> Judged:
    """Fit on the train rows with early stopping, and judge by the model's saved file on the validation rows."""
    train, valid, params = task.parts.train, task.parts.validation, asked.params
    model = task.fit("trial", train, params, valid, asked.number, watch)
    return Judged(params, task.trainer.learned(model), task.metrics(valid, _as_served(task, model, task.x(valid))))


def _as_served(task: Task, model: Any, x: np.ndarray) -> np.ndarray:
    """What the model's saved file predicts."""
    with tempfile.TemporaryDirectory() as scratch:
        task.trainer.save(model, Path(scratch))
        return load_predictor(task.trainer.framework, Path(scratch))(x)


def _publish(task: Task, model: Any, out: Path) -> np.ndarray:
    """Write the bundle beside, then rename; then the holdout's predictions, which are returned."""
    import polars as pl

    beside = out / "bundle.partial"
    shutil.rmtree(beside, ignore_errors=True)
    task.trainer.save(model, beside / "model", task.x(task.parts.holdout))
    predict = load_predictor(task.trainer.framework, beside / "model")
    _write_json(beside / "schema.json", task.schema.to_json())
    _write_json(beside / "golden.json", _golden(task, predict))
    baseline = _baseline(task, predict)
    baseline.write_parquet(beside / "baseline.parquet")
    predictions = predict(task.x(task.parts.holdout))
    columns = _holdout_columns(task.arguments)
    holdout = task.parts.holdout.select(columns).with_columns(pl.Series(PREDICTION, predictions))
    _write_json(beside / "usual.json", _usual(task, predict, baseline, holdout))
    holdout.write_parquet(out / "holdout.parquet.partial")
    shutil.rmtree(out / "bundle", ignore_errors=True)
    beside.rename(out / "bundle")
    (out / "holdout.parquet.partial").rename(out / "holdout.parquet")
    return predictions


def _golden(task: Task, predict: Any) -> dict[str, Any]:
    """A few rows of the holdout, evenly spread, and what the model says of them; the endpoint must say the same."""
    import polars.selectors as cs

    holdout = task.parts.holdout
    frame = holdout.gather_every(max(1, holdout.height // GOLDEN_ROWS)).head(GOLDEN_ROWS).select(task.schema.names)
    rows = [list(row) for row in frame.with_columns(cs.float().fill_nan(None)).rows()]
    return {"rows": rows, "predictions": predict(task.schema.encode(rows)).tolist()}


def _baseline(task: Task, predict: Any) -> pl.DataFrame:
    """A bounded sample of what the model learned from, with its predictions: drift is measured against it."""
    import polars as pl

    rows = task.parts.learnable.select(task.schema.names)
    sample = rows.sample(min(BASELINE_ROWS, rows.height), seed=task.seed)
    return sample.with_columns(pl.Series(PREDICTION, predict(task.x(sample))))


def _usual(task: Task, predict: Any, baseline: pl.DataFrame, holdout: pl.DataFrame) -> dict[str, Any]:
    """How far the weeks that the model learned from were from each other, and how good it is by slice."""
    import polars as pl

    from mlops_assets.monitoring.performance import slice_metrics
    from mlops_assets.monitoring.usual import Usual

    learnable, arguments = task.parts.learnable, task.arguments
    rows = learnable.select(EVENT_TIMESTAMP, *task.schema.names)
    rows = rows.with_columns(pl.Series(PREDICTION, predict(task.x(learnable))))
    judged = holdout.with_columns(pl.col(arguments["label"]).cast(pl.Float64).alias("truth"))
    slices = slice_metrics(judged, arguments["metric"], arguments["slices"], arguments["monitor"]["slice_min_rows"])
    window = timedelta(seconds=arguments["monitor"]["window_seconds"])
    return Usual.of(rows, baseline, window, slices, classes=task.trainer.task == "multiclass").to_json()


def _holdout_columns(arguments: Mapping[str, Any]) -> list[str]:
    inputs = [field["name"] for field in arguments["fields"]]
    return list(dict.fromkeys([arguments["key"], EVENT_TIMESTAMP, arguments["label"], *arguments["slices"], *inputs]))


def _refuse_missing_columns(arguments: Mapping[str, Any], columns: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in columns]:
        raise TrainingDataError.of(
            arguments["model"],
            f"training set {arguments['training_set']}",
            f"lacks the columns {', '.join(missing)} (it has: {', '.join(columns)})",
            "Materialize the training set again, or mend the declaration.",
        )


def _refuse_unusable_labels(arguments: Mapping[str, Any], parts: Parts, trainer: Trainer) -> None:
    """Every part has rows, every label a value, and a classifier's labels both classes."""
    for name, part in parts.by_name.items():
        problem = _label_problem(part[arguments["label"]], trainer)
        if problem:
            raise TrainingDataError.of(
                arguments["model"],
                f"the {name} part ({part.height} rows before {arguments['split']['cutoff']})",
                problem,
                "Change the cutoff or the split, or mend the labels.",
            )


def _label_problem(label: pl.Series, trainer: Trainer) -> str | None:
    import polars as pl

    if label.is_empty():
        return "is empty"
    if not (label.dtype.is_numeric() or label.dtype == pl.Boolean):
        return f"has the label {label.name!r} as {label.dtype}, not a number or a Boolean"
    values = label.cast(pl.Float64)
    if unusable := values.len() - int(values.is_finite().fill_null(False).sum()):
        return f"has {unusable} labels {label.name!r} that are null, NaN or infinite"
    classes = values.unique().sort().to_list()
    if trainer.task == "classification" and classes != [0.0, 1.0]:
        return f"has the classes {classes[:5]} in label {label.name!r}, not both 0 and 1"
    if trainer.task == "multiclass" and (classes[0] < 0 or any(value % 1 for value in classes)):
        return f"has the classes {classes[:5]} in label {label.name!r}, not whole numbers from 0 on"
    return None


def _fields(documents: Sequence[Mapping[str, Any]]) -> dict[str, Field]:
    return {item["name"]: Field(**{key: value for key, value in item.items() if key != "name"}) for item in documents}


def _checkpoint_document(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """In seconds and rounds; None where none are kept."""
    if checkpoint is None:
        return None
    every = checkpoint.every.total_seconds() if checkpoint.every else None
    return {"seconds": every, "rounds": checkpoint.rounds}


def _search_document(search: Search) -> dict[str, Any]:
    space = {name: _domain(value) for name, value in search.space.items()}
    how = {"workers": search.workers, "prune": search.prune or None, "over": search.over}
    return {"trials": search.trials, "seed": search.seed, "space": space, **how}


def _domain(value: Any) -> dict[str, Any]:
    if hasattr(value, "low"):
        kind = "int" if type(value).__name__ == "IntRange" else "float"
        return {"kind": kind, "low": value.low, "high": value.high, "log": value.log}
    return {"kind": "choice", "choices": list(value)}


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, allow_nan=False))
