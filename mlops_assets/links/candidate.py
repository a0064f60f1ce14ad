"""A candidate: a model trained as of a cutoff, judged by its gate, and kept whatever the verdict.

It is an MLflow run (its trials are child runs) and a registered version, never a pickle through an IO
manager. The champion is judged on the very same holdout rows. A candidate that fails a blocking check is
registered, visible and tagged with the reason; nothing downstream of it runs.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import spec
from mlops_assets.promotion import GATE, PASSED, REFUSED
from resources.champions import ALIAS
from resources.compute import ComputeResource
from resources.environment import home
from resources.lake import Lake
from resources.mlflow import MlflowResource

if TYPE_CHECKING:
    from mlops_assets.gate import Verdict

LINK = "candidate"
ENTRYPOINT = "mlops_assets.training:train"
BUNDLE = "bundle"
CHECKS = {
    "clears_floor": "The metric on the holdout clears the floor of the gate",
    "beats_champion": "It is better than the champion on the same holdout rows",
    "worst_slice": "No slice is much worse than the whole",
    "latency": "One row is predicted in time",
}


def candidate_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key, training_set = spec.link_key(model, LINK), spec.link_key(model, "training_set")

    @dg.asset(
        key=key,
        deps=[training_set],
        description=f"{model.description or model.title} Trained by {type(model.trainer).__name__}, judged by its gate.",
        group_name=spec.model_group(model),
        owners=spec.owners(model.owners, model.team),
        kinds={"mlflow", model.trainer.framework},
        tags=spec.model_tags(model, LINK),
        partitions_def=model.cutoffs,
        pool="training",
        automation_condition=spec.on_arrival(),
        check_specs=spec.check_specs(key, dict.fromkeys(CHECKS, True), CHECKS),
    )
    def candidate(
        context: dg.AssetExecutionContext, lake: Lake, mlflow: MlflowResource, compute: ComputeResource
    ) -> Iterator[Any]:
        cutoff = context.partition_time_window.start
        path = lake.path(training_set, context.partition_key)
        with (
            _workplace() as out,
            mlflow.run(model.id, name=context.partition_key, tags=run_tags(model, context)) as run_id,
        ):
            trained = compute.run(ENTRYPOINT, arguments(model, cutoff, path, out))
            mlflow.log_trials(run_id, f"validation_{model.gate.metric}", trials(out))
            verdicts = judged(model, mlflow, out, trained)
            _complete_bundle(model, out, run_id, trained, context)
            version = _register(model, mlflow, out, run_id, trained, verdicts, context.partition_key)
        yield dg.MaterializeResult(
            metadata=told(trained, verdicts, version, run_id, mlflow), data_version=dg.DataVersion(f"version {version}")
        )
        for verdict in verdicts:
            claim = Claim(verdict.name, verdict.passed, verdict.reason, numbers=verdict.numbers)
            yield spec.check_result(key, claim, version=version)

    return candidate


@contextmanager
def _workplace() -> Iterator[Path]:
    """A directory for the bundle until it is in the registry; on the same disk as the rest of the state."""
    root = home() / "work"
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root, prefix="candidate-") as directory:
        yield Path(directory)


def arguments(model: ModelPipeline, cutoff: datetime, training_set: Any, out: Path) -> dict[str, Any]:
    from mlops_assets.training import training_arguments

    return training_arguments(model, cutoff, training_set, out)


def run_tags(model: ModelPipeline, context: dg.AssetExecutionContext) -> dict[str, str]:
    """What leads from MLflow back to Dagster."""
    provenance = context.get_asset_provenance(context.asset_key)
    return {
        "dagster/run_id": context.run.run_id,
        "dagster/asset_key": context.asset_key.to_user_string(),
        "dagster/partition": context.partition_key,
        "dagster/code_version": provenance.code_version if provenance else "",
        "team": model.team,
        "model": model.id,
        "framework": model.trainer.framework,
    }


def trials(out: Path) -> list[dict[str, Any]]:
    """What each trial tried and reached, as the search wrote it down."""
    return [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]


def judged(model: ModelPipeline, mlflow: MlflowResource, out: Path, trained: Mapping[str, Any]) -> "list[Verdict]":
    """The gate's verdicts on the holdout, with the champion's predictions of the same rows."""
    import polars as pl

    from mlops_assets.gate import CHAMPION, judge, measure_latency
    from mlops_assets.input_schema import InputSchema
    from mlops_assets.trainers import load_predictor
    from mlops_assets.training import evaluate

    holdout = pl.read_parquet(out / "holdout.parquet")
    champion = mlflow.alias(model.registered_name, ALIAS)
    if champion is not None:
        predictions = evaluate(mlflow.download(model.registered_name, champion), holdout)
        holdout = holdout.with_columns(predictions.alias(CHAMPION))
    bundle = out / BUNDLE
    schema = InputSchema.from_json(json.loads((bundle / "schema.json").read_text()))
    predictor = load_predictor(trained["framework"], bundle / "model")
    golden = json.loads((bundle / "golden.json").read_text())["rows"]
    return judge(model.gate, model.label, holdout, measure_latency(predictor, schema, golden))


def _complete_bundle(
    model: ModelPipeline, out: Path, run_id: str, trained: Mapping[str, Any], context: dg.AssetExecutionContext
) -> None:
    """Add what only the platform knows: where each input is found, and where the model comes from."""
    from mlops_assets.manifest import run_manifest
    from mlops_assets.serving.plan import FeaturePlan

    manifest = {
        "model": model.id,
        "task": trained["task"],
        "framework": trained["framework"],
        "label": model.label,
        "run_id": run_id,
        "dagster_run_id": context.run.run_id,
        "cutoff": context.partition_key,
        "training_set": {"hash": _training_set_hash(model, context), "rows": sum(trained["rows"].values())},
        "metric": trained["metric"],
        "params": trained["params"],
        **run_manifest(),
    }
    for name, document in (("plan.json", FeaturePlan.of(model).to_json()), ("manifest.json", manifest)):
        _write_json(out / BUNDLE / name, document)


def _training_set_hash(model: ModelPipeline, context: dg.AssetExecutionContext) -> str | None:
    """The content hash that the training set of this cutoff was published with."""
    record = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=spec.link_key(model, "training_set"), asset_partitions=[context.partition_key]),
        limit=1,
    )
    materialization = record.records[0].asset_materialization if record.records else None
    found = materialization.metadata.get("content_hash") if materialization else None
    return str(found.value) if found else None


def _write_json(path: Path, document: Any) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(document, indent=2))
    os.replace(beside, path)


def _register(
    model: ModelPipeline,
    mlflow: MlflowResource,
    out: Path,
    run_id: str,
    trained: Mapping[str, Any],
    verdicts: "Sequence[Verdict]",
    cutoff: str,
) -> str:
    """Log everything to the run and register its bundle; the gate's verdict is a tag of the version."""
    refused = [verdict for verdict in verdicts if not verdict.passed]
    name = trained["metric"]["name"]
    metrics = {
        f"{part}_{metric}": value for part, found in trained["metrics"].items() for metric, value in found.items()
    }
    seconds = {f"seconds_{part}": value for part, value in trained["seconds"].items()}
    mlflow.log(run_id, params=trained["params"], metrics={**metrics, **seconds})
    mlflow.log_directory(run_id, out / BUNDLE, BUNDLE)
    return mlflow.register(
        model.registered_name,
        run_id,
        BUNDLE,
        {
            "cutoff": cutoff,
            "metric": f"{trained['metric']['holdout']:.4f}",
            "metric_name": name,
            GATE: REFUSED if refused else PASSED,
            **(
                {"refused_because": "; ".join(f"{verdict.name}: {verdict.reason}" for verdict in refused)}
                if refused
                else {}
            ),
            "team": model.team,
            "framework": trained["framework"],
            "accelerators": "cpu",
        },
    )


def told(
    trained: Mapping[str, Any], verdicts: "Sequence[Verdict]", version: str, run_id: str, mlflow: MlflowResource
) -> dict[str, Any]:
    """The candidate as metadata: numbers to plot, and the way to its MLflow run."""
    gate = [(item.name, "passed" if item.passed else "**refused**", item.reason) for item in verdicts]
    importance = sorted(trained["importance"].items(), key=lambda item: -item[1])[:10]
    return {
        "version": version,
        "mlflow_run_id": run_id,
        "mlflow_run": dg.MetadataValue.url(mlflow.run_url(run_id)),
        "metric": trained["metric"]["holdout"],
        "metric_name": trained["metric"]["name"],
        "trials": trained["trials"],
        "gate": spec.table(["check", "verdict", "reason"], gate),
        "best_params": dg.MetadataValue.json(trained["best_params"]),
        "importance": dg.MetadataValue.json(dict(importance)),
        "rows": dg.MetadataValue.json(trained["rows"]),
        **{f"seconds/{part}": value for part, value in trained["seconds"].items()},
    }
