"""A candidate: a model trained as of a cutoff, judged by its gate, and kept whatever the verdict.

It is an MLflow run (its trials are child runs) and a registered version, never a pickle through an IO
manager. The champion is judged on the very same holdout rows. A candidate that fails a blocking check is
registered, visible and tagged with the reason; nothing downstream of it runs.

A run that was killed is taken up by the next one of the same training: trials that ended are not run again, fits go
on from their checkpoints, the MLflow run goes on under its id, and what was registered already is not registered again.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.checkpoints import MACHINE, TRIALS, digest
from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import spec
from mlops_assets.manifest import made_from, run_manifest
from mlops_assets.newcomers import CHECK, PROMISE, Newcomers, helps
from mlops_assets.promotion import GATE, PASSED, REFUSED
from mlops_assets.record import RECORD, training_record
from mlops_assets.search import journalled
from mlops_assets.upstream import hash_of, tables_read, training_set_event, versions_read
from mlops_assets.workplace import clean, workplace
from resources.champions import ALIAS
from resources.compute import ComputeResource
from resources.kubernetes.pods import op_tags
from resources.lake import Lake
from resources.mlflow import MlflowResource

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.gate import Unjudged

    Said = pl.Series | Unjudged | None

LINK = "candidate"
ENTRYPOINT = "mlops_assets.training:train"
BUNDLE = "bundle"
CHECKS = {
    "clears_floor": "The metric on the holdout clears the floor of the gate",
    "beats_champion": "It is better than the champion on the same holdout rows",
    "worst_slice": "No slice is much worse than the whole",
    "latency": "One row is predicted in time",
}


def checks(model: ModelPipeline) -> dict[str, bool]:
    """The checks of a model's candidate, and which of them block."""
    return {**dict.fromkeys(CHECKS, True), **({CHECK: False} if Newcomers.of(model) else {})}


def pool(model: ModelPipeline) -> str:
    """Who waits for whom: trainings for each other, and those on a GPU for the GPUs alone."""
    return "gpu" if model.resources.gpus or model.accelerator in ("cuda", "mps", "mlx") else "training"


def candidate_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key, training_set = spec.link_key(model, LINK), spec.link_key(model, "training_set")

    @dg.asset(
        key=key,
        deps=[training_set],
        description=f"{model.description or model.title} By {type(model.trainer).__name__}, judged by its gate.",
        kinds={"mlflow", model.trainer.framework},
        **spec.belonging(model, LINK),
        code_version=spec.declared_version(
            model, model.trainer, model.split, model.search, model.gate, *spec.post_processing(model)
        ),
        partitions_def=model.cutoffs,
        pool=pool(model),
        op_tags=op_tags(model.compute, model.resources.document),
        automation_condition=spec.on_arrival(),
        check_specs=spec.check_specs(key, checks(model), {**CHECKS, CHECK: PROMISE}),
    )
    def candidate(
        context: dg.AssetExecutionContext, lake: Lake, mlflow: MlflowResource, compute: ComputeResource
    ) -> Iterator[Any]:
        from mlops_assets.training import training_arguments

        cutoff = context.partition_time_window.start
        lake.scan(training_set, [context.partition_key])  # one that is damaged is named here, before work begins
        path: Any = lake.path(training_set, context.partition_key)
        arguments = training_arguments(model, cutoff, path, Path())
        made, origin = made_from(arguments), _origin(model, context)
        with workplace(workplace_name(model, context.partition_key, made)) as work:
            clean(mlflow.abandon)
            tags = run_tags(model, origin, model.compute or compute.kind)
            with mlflow.run(model.id, name=context.partition_key, tags=tags, continues=work.run_id) as run_id:
                again = run_id == work.run_id
                work.note_run(run_id)
                show = _shown(mlflow, run_id, model, work.path / TRIALS)
                trained: dict[str, Any] = {}
                (work.path / MACHINE).unlink(missing_ok=True)  # where an earlier attempt was
                try:
                    with mlflow.loop(run_id, meanwhile=show) as log:
                        where = {"out": str(work.path), "points": str(log.path)}
                        trained = compute.run(
                            ENTRYPOINT,
                            {**arguments, **where},
                            context,
                            kind=model.compute,
                            resources=model.resources.document,
                        )
                finally:  # work that broke off shows where it was done, and a search how far it came
                    show()
                    mlflow.log(run_id, tags=machine_tags(trained or _noted(work.path / MACHINE)))
                mlflow.log(run_id, metrics=trained["usage"], tags={"thermal": trained["thermal"]})
                verdicts = judged(model, mlflow, work.path, trained)
                record = {"arguments": arguments, "made_from": trained["made_from"], **upstream_of(model, context)}
                _complete_bundle(model, work.path, trained, {**origin, "run_id": run_id}, record)
                tags = version_tags(model, trained, verdicts, context.partition_key)
                version = _register(model, mlflow, work.path, run_id, trained, tags, again)
            yield dg.MaterializeResult(
                metadata=told(model, trained, verdicts, version, run_id, mlflow),
                data_version=dg.DataVersion(f"version {version}"),
            )
            yield from (spec.check_result(key, verdict, version=version) for verdict in verdicts)

    return candidate


def _shown(mlflow: MlflowResource, run_id: str, model: ModelPipeline, journal: Path) -> Callable[[], None]:
    """Make child runs of the trials that ended since it was called last."""
    known = 0

    def show() -> None:
        nonlocal known
        ended = journalled(journal)
        if len(ended) != known:
            mlflow.log_trials(run_id, f"validation_{model.gate.metric}", ended)
            known = len(ended)

    return show


def workplace_name(model: ModelPipeline, cutoff: str, made: Mapping[str, Any]) -> str:
    """One for each training: of the same rows, declaration, code and libraries."""
    return f"{model.registered_name}-{cutoff}-{digest(made)}"


def _origin(model: ModelPipeline, context: dg.AssetExecutionContext) -> dict[str, Any]:
    """Where a candidate comes from: the Dagster run, the rows, the code, the libraries, the machine."""
    return {
        "dagster_run_id": context.run.run_id,
        "asset_key": context.asset_key.to_user_string(),
        "cutoff": context.partition_key,
        "code_version": context.assets_def.code_versions_by_key.get(context.asset_key),
        "training_set_hash": hash_of(training_set_event(model, context.partition_key, context.instance)),
        **run_manifest(),
    }


def run_tags(model: ModelPipeline, origin: Mapping[str, Any], kind: str) -> dict[str, str]:
    """What leads from MLflow back to Dagster, what the run was made with, and by which kind of compute."""
    return {
        "dagster/run_id": origin["dagster_run_id"],
        "dagster/asset_key": origin["asset_key"],
        "dagster/partition": origin["cutoff"],
        "dagster/code_version": origin["code_version"] or "",
        "training_set_hash": origin["training_set_hash"] or "",
        "git_commit": f"{origin['git_commit']}{' and changes' if origin['git_dirty'] else ''}",
        "constraints_sha256": origin["constraints_sha256"] or "",
        "team": model.team,
        "model": model.id,
        "framework": model.trainer.framework,
        "trainer": type(model.trainer).__name__,
        "compute": kind,
    }


def machine_tags(told: Mapping[str, Any]) -> dict[str, str]:
    """The machine that did the training, as it says itself: what it computed on, and why on nothing better."""
    if not told:
        return {}
    return {
        "hardware": "{cpu_count} CPUs, {memory_gb} GB, GPU {gpu}, {platform}".format(**told["machine"]),
        "accelerator": told["device"]["kind"],
        "device": told["device"]["name"],
        "fallback": told["device"]["reason"],
    }


def _noted(machine: Path) -> dict[str, Any]:
    """What a worker that died said of its machine before it began; nothing where none began."""
    return dict(json.loads(machine.read_bytes())) if machine.is_file() else {}


def judged(model: ModelPipeline, mlflow: MlflowResource, out: Path, trained: Mapping[str, Any]) -> list[Claim]:
    """The gate's verdicts on the holdout, with the champion's predictions of the same rows, and the cold starts'."""
    import polars as pl

    from mlops_assets.gate import CHAMPION, Unjudged, judge, measure_latency
    from mlops_assets.input_schema import InputSchema
    from mlops_assets.trainers import load_predictor

    holdout = pl.read_parquet(out / "holdout.parquet")
    champion = champion_says(model, mlflow, holdout)
    unjudged = champion if isinstance(champion, Unjudged) else None
    if isinstance(champion, pl.Series):
        holdout = holdout.with_columns(champion.alias(CHAMPION))
    bundle = out / BUNDLE
    schema = InputSchema.from_json(json.loads((bundle / "schema.json").read_text()))
    predictor = load_predictor(trained["framework"], bundle / "model")
    golden = json.loads((bundle / "golden.json").read_text())["rows"]
    verdicts = judge(model.gate, model.label, holdout, measure_latency(predictor, schema, golden), unjudged)
    cold = trained["cold_starts"]
    return [*verdicts, helps(model.gate.metric, cold)] if cold else verdicts


def champion_says(
    model: ModelPipeline, mlflow: MlflowResource, holdout: "pl.DataFrame"
) -> "pl.Series | Unjudged | None":
    """The champion's prediction for each row, or why it has none to make; None when there is no champion.

    A declaration may drop a feature, or predict something else, while the champion is still the one of before.
    """
    from mlops_assets.gate import Unjudged
    from mlops_assets.input_schema import InputError
    from mlops_assets.training import evaluate

    version = mlflow.alias(model.registered_name, ALIAS)
    if version is None:
        return None
    bundle = mlflow.download(model.registered_name, version)
    manifest = json.loads((bundle / "manifest.json").read_text())
    if (manifest["task"], manifest["label"]) != (model.task, model.label):
        return Unjudged(version, f"it is a {manifest['task']} of {manifest['label']!r}, not of {model.label!r}", None)
    try:
        return evaluate(bundle, holdout)
    except InputError as problem:
        metric = manifest["metric"]
        return Unjudged(version, str(problem), metric["holdout"] if metric["name"] == model.gate.metric else None)


def _complete_bundle(
    model: ModelPipeline,
    out: Path,
    trained: Mapping[str, Any],
    origin: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    """Add what only the platform knows: where each input is found, what an answer says, where the model comes from.

    The machine is the one that did the training, not the one that asked for it.
    """
    from mlops_assets.serving.plan import FeaturePlan
    from mlops_assets.serving.postprocess import Postprocess

    manifest = {
        **{name: value for name, value in origin.items() if name != "training_set_hash"},
        **trained["machine"],
        "device": trained["device"],
        "model": model.id,
        "task": trained["task"],
        "framework": trained["framework"],
        "label": model.label,
        "training_set": {"hash": origin["training_set_hash"], "rows": sum(trained["rows"].values())},
        "metric": trained["metric"],
        "params": trained["params"],
    }
    documents = {
        RECORD: training_record(out, trained, record),
        "plan.json": FeaturePlan.of(model).to_json(),
        "manifest.json": manifest,
    }
    for name, document in documents.items():
        (out / BUNDLE / name).write_text(json.dumps(document, indent=2))
    if post := Postprocess.of(model):
        post.write(out / BUNDLE, model.inputs)


def upstream_of(model: ModelPipeline, context: dg.AssetExecutionContext) -> dict[str, Any]:
    """The versions of the partitions that the training set was joined from, and of the code that made their tables."""
    event = training_set_event(model, context.partition_key, context.instance)
    before = event.storage_id if event else None
    return {
        "upstream": versions_read(model, context.partition_key, context.instance, before),
        "tables": {table.id: table.code_version for table in tables_read(model).values()},
    }


def _register(
    model: ModelPipeline,
    mlflow: MlflowResource,
    out: Path,
    run_id: str,
    trained: Mapping[str, Any],
    tags: Mapping[str, str],
    again: bool,
) -> str:
    """Log everything to the run and register its bundle; the gate's verdict is a tag of the version.

    `again`: the run was killed before, perhaps after this. What it registered then is the version, as it is.
    """
    if again and (version := mlflow.registered(model.registered_name, run_id)):
        mlflow.tag_version(model.registered_name, version, tags)
        return version
    metrics = {
        f"{part}_{metric}": value for part, found in trained["metrics"].items() for metric, value in found.items()
    }
    seconds = {f"seconds_{part}": value for part, value in trained["seconds"].items()}
    searched = {f"search_{part}": value for part, value in trained["search"].items()}
    cold = {f"cold_start_{what}": value for what, value in (trained["cold_starts"] or {}).items() if what != "problem"}
    mlflow.log(run_id, params=trained["params"], metrics={**metrics, **seconds, **searched, **cold})
    mlflow.log_directory(run_id, out / BUNDLE, BUNDLE)
    return mlflow.register(model.registered_name, run_id, BUNDLE, tags)


def version_tags(
    model: ModelPipeline, trained: Mapping[str, Any], verdicts: Sequence[Claim], cutoff: str
) -> dict[str, str]:
    """What is found of a version without opening it: cutoff, metric, the gate's verdict and its reasons."""
    refused = [verdict for verdict in verdicts if verdict.blocking and not verdict.passed]
    reasons = {"refused_because": "; ".join(f"{verdict.name}: {verdict.reason}" for verdict in refused)}
    return {
        "cutoff": cutoff,
        "metric": f"{trained['metric']['holdout']:.4f}",
        "metric_name": trained["metric"]["name"],
        GATE: REFUSED if refused else PASSED,
        **(reasons if refused else {}),
        "team": model.team,
        "framework": trained["framework"],
        "accelerator": trained["device"]["kind"],  # what it was trained on
        "accelerators": ", ".join(model.trainer.accelerators),  # what such a model can be trained on
    }


def told(
    model: ModelPipeline,
    trained: Mapping[str, Any],
    verdicts: Sequence[Claim],
    version: str,
    run_id: str,
    mlflow: MlflowResource,
) -> dict[str, Any]:
    """The candidate as metadata: numbers to plot, and the way to its MLflow run."""
    gate = [(item.name, _verdict(item), item.reason) for item in verdicts]
    importance = sorted(trained["importance"].items(), key=lambda item: -item[1])[:10]
    return {
        "version": version,
        "mlflow_run_id": run_id,
        "mlflow_run": dg.MetadataValue.url(mlflow.run_url(run_id)),
        "mlflow_version": dg.MetadataValue.url(mlflow.version_url(model.registered_name, version)),
        "metric": trained["metric"]["holdout"],
        "metric_name": trained["metric"]["name"],
        **{name if name == "trials" else f"search/{name}": value for name, value in trained["search"].items()},
        "gate": spec.table(["check", "verdict", "reason"], gate),
        "best_params": dg.MetadataValue.json(trained["best_params"]),
        "importance": dg.MetadataValue.json(dict(importance)),
        "rows": dg.MetadataValue.json(trained["rows"]),
        **{f"seconds/{part}": value for part, value in trained["seconds"].items()},
        **_machine_told(trained),
        **{f"cold_start/{what}": value for what, value in (trained["cold_starts"] or {}).items()},
    }


def _machine_told(trained: Mapping[str, Any]) -> dict[str, Any]:
    device = trained["device"]
    told = {"device": f"{device['kind']}: {device['name']}", "thermal": trained["thermal"]}
    return told | ({"fallback": device["reason"]} if device["reason"] else {}) | dict(trained["usage"])


def _verdict(claim: Claim) -> str:
    if claim.passed:
        return "passed"
    return "**refused**" if claim.blocking else "warned"
