"""The same declaration written as YAML: a Dagster component that only forwards to `ModelPipeline`.

    type: mlops_assets.component.ModelPipelineComponent
    attributes: {name: ..., team: ..., labels: team/labels, features: [team/view, "team/view:a,b"], ...}

Tables and views are named as `mlops features` prints them. Whatever the Python declaration refuses is
refused here with the same words. Other components in the team folders are loaded as they are.
"""

from collections.abc import Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from mlops_assets.catalog import Catalog
from mlops_assets.declarations import (
    Approval,
    Checkpoint,
    DeclarationError,
    FloatRange,
    Gate,
    IntRange,
    ModelPipeline,
    Monitor,
    Over,
    Parity,
    PostProcessing,
    Prune,
    Resources,
    Search,
    Serve,
    TimeSplit,
    Trained,
    WithoutStore,
)
from resources.hardware import Accelerator

WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")


class TrainerSpec(dg.Model):
    """A trainer class by name, and its parameters."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class Cutoffs(dg.Model):
    """Weekly cutoffs on a weekday at 00:00 UTC, there from that moment on; from `start` to where the data ends."""

    weekly: Literal["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"] = "monday"
    start: str
    end: str | None = None

    def partitions(self) -> dg.WeeklyPartitionsDefinition:
        day = WEEKDAYS.index(self.weekly)
        return dg.WeeklyPartitionsDefinition(start_date=self.start, end_date=self.end, day_offset=day, end_offset=1)


class SplitSpec(dg.Model):
    """`TimeSplit`, in days."""

    holdout_days: float = 14
    validation_days: float = 14
    window_days: float | None = None

    def split(self) -> TimeSplit:
        window = timedelta(days=self.window_days) if self.window_days else None
        return TimeSplit(timedelta(days=self.holdout_days), timedelta(days=self.validation_days), window)


class RangeSpec(dg.Model):
    """`type: int` or `float` between low and high."""

    type: Literal["int", "float"]
    low: float
    high: float
    log: bool = False

    def range(self) -> IntRange | FloatRange:
        if self.type == "int":
            return IntRange(int(self.low), int(self.high), self.log)
        return FloatRange(self.low, self.high, self.log)


class SearchSpec(dg.Model):
    """`Search`."""

    trials: int = 1
    seed: int = 7
    space: dict[str, RangeSpec | list[Any]] = Field(default_factory=dict)
    workers: int = Search.workers
    prune: Prune = Search.prune
    over: Over = Search.over

    def search(self) -> Search:
        space = {name: item.range() if isinstance(item, RangeSpec) else item for name, item in self.space.items()}
        return Search(self.trials, space, self.seed, self.workers, self.prune, self.over)


class GateSpec(dg.Model):
    """`Gate`."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    beats_champion_by: float | None = 0.0
    slices: list[str] = Field(default_factory=list)
    slice_tolerance: float = 0.15
    slice_min_rows: int = 200
    latency_ms: float = 50.0


class MonitorSpec(dg.Model):
    """`Monitor`, in days."""

    psi: float = Monitor.psi
    drifted_share: float = Monitor.drifted_share
    metric_drop: float = Monitor.metric_drop
    fallback_share: float = Monitor.fallback_share
    window_days: float = 7
    min_rows: int = Monitor.min_rows
    cooldown_days: float = 7
    maturity_days: float = 2
    null_share_rise: float = Monitor.null_share_rise
    invalid_share: float = Monitor.invalid_share
    volume_change: float = Monitor.volume_change

    def monitor(self) -> Monitor:
        given = self.model_dump()
        return Monitor(
            window=timedelta(days=given.pop("window_days")),
            cooldown=timedelta(days=given.pop("cooldown_days")),
            maturity=timedelta(days=given.pop("maturity_days")),
            **given,
        )


class ServeSpec(dg.Model):
    """`Serve`, the deadline in seconds, what a step waits for labels in days."""

    canary: list[int] = Field(default_factory=lambda: list(Serve.canary))
    max_error_share: float = Serve.max_error_share
    max_latency_ratio: float = Serve.max_latency_ratio
    min_requests: int = Serve.min_requests
    hold_days: float = Serve.hold / timedelta(days=1)
    max_changed: float = Serve.max_changed
    without_store: WithoutStore = Serve.without_store
    deadline_seconds: float = Serve.deadline.total_seconds()

    def serve(self) -> Serve:
        return Serve(
            canary=self.canary,
            max_error_share=self.max_error_share,
            max_latency_ratio=self.max_latency_ratio,
            min_requests=self.min_requests,
            hold=timedelta(days=self.hold_days),
            max_changed=self.max_changed,
            without_store=self.without_store,
            deadline=timedelta(seconds=self.deadline_seconds),
        )


class ApprovalSpec(dg.Model):
    """`Approval`, in days."""

    expires_days: float = Approval.expires / timedelta(days=1)

    def approval(self) -> Approval:
        return Approval(expires=timedelta(days=self.expires_days))


class ParitySpec(dg.Model):
    """`Parity`."""

    rows: int = 200
    tolerance: float = 1e-6
    at_most: float = 0.0


class CheckpointSpec(dg.Model):
    """`Checkpoint`, in minutes; 0 of them is never."""

    minutes: float | None = 10
    rounds: int | None = None

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(timedelta(minutes=self.minutes) if self.minutes else None, self.rounds)


class ResourcesSpec(dg.Model):
    """`Resources`, the wait for a machine in minutes."""

    cpus: float | None = None
    memory_gb: float | None = None
    gpus: int = 0
    machines: int = 1
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[dict[str, str]] = Field(default_factory=list)
    spot: bool = False
    retries: int = 0
    start_within_minutes: float = Resources.start_within / timedelta(minutes=1)
    service_account: str = ""
    image: str = ""

    def resources(self) -> Resources:
        told = self.model_dump(exclude={"start_within_minutes"})
        return Resources(**told, start_within=timedelta(minutes=self.start_within_minutes))


class ModelPipelineComponent(dg.Component, dg.Model, dg.Resolvable):
    """One model's whole life, from YAML."""

    name: str
    team: str
    labels: str
    label: str
    features: Sequence[str]
    trainer: TrainerSpec
    cutoffs: Cutoffs
    gate: GateSpec
    split: SplitSpec = SplitSpec()
    search: SearchSpec = SearchSpec()
    serve: ServeSpec | None = None
    canary: Sequence[int] | None = None  # short for `serve: {canary: ...}`
    monitor: MonitorSpec = MonitorSpec()
    parity: ParitySpec = ParitySpec()
    approval: ApprovalSpec | None = None  # `approval: {}` for what `Approval()` is
    checkpoint: CheckpointSpec | None = CheckpointSpec()
    trained: Trained = "on cause"
    compute: str = ""
    accelerator: Accelerator = "auto"
    resources: ResourcesSpec = ResourcesSpec()
    postprocess: str | None = None  # "module:name" of a function declared with @postprocess
    description: str = ""
    owners: Sequence[str] = ()

    def pipeline(self, catalog: Catalog) -> ModelPipeline:
        from mlops_assets.trainers import trainer_named

        return ModelPipeline(
            name=self.name,
            team=self.team,
            labels=catalog.labels(self.labels),
            label=self.label,
            features=tuple(catalog.features(reference) for reference in self.features),
            trainer=trainer_named(self.trainer.name, **self.trainer.params),
            cutoffs=self.cutoffs.partitions(),
            gate=Gate(**self.gate.model_dump()),
            split=self.split.split(),
            search=self.search.search(),
            serve=self._serve(),
            monitor=self.monitor.monitor(),
            parity=Parity(**self.parity.model_dump()),
            approval=self.approval.approval() if self.approval else None,
            checkpoint=self.checkpoint.checkpoint() if self.checkpoint else None,
            trained=self.trained,
            compute=self.compute,
            accelerator=self.accelerator,
            resources=self.resources.resources(),
            postprocess=_post_processing(self.postprocess) if self.postprocess else None,
            description=self.description,
            owners=tuple(self.owners),
        )

    def _serve(self) -> Serve:
        if self.canary is None:
            return (self.serve or ServeSpec()).serve()
        if self.serve is not None:
            raise DeclarationError.of(
                f"model '{self.team}/{self.name}'", "canary", list(self.canary), "one place", "Say it under `serve`."
            )
        return Serve(tuple(self.canary))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:  # noqa: ARG002  Dagster's signature
        from mlops_assets.catalog import gather_python
        from mlops_assets.pipeline import model_definitions

        return model_definitions(self.pipeline(gather_python()))


def _post_processing(path: str) -> PostProcessing:
    """What `module:name` names, which must have been declared with `@postprocess`."""
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise DeclarationError.of("YAML", "postprocess", path, "module:name", f"{error}.") from error
    if isinstance(found, PostProcessing):
        return found
    known = sorted(name for name, value in vars(import_module(module)).items() if isinstance(value, PostProcessing))
    raise DeclarationError.of(
        "YAML", "postprocess", path, ", ".join(known) or f"none in {module}", "Name a function under @postprocess."
    )


def load_components(
    files: Sequence[tuple[ModuleType, Path]], catalog: Catalog
) -> tuple[list[ModelPipeline], list[dg.Definitions]]:
    """The models declared in `defs.yaml` files, and the definitions of any other component found there."""
    models, others = [], []
    trees = {
        package.__name__: dg.ComponentTree(defs_module=package, project_root=_project_root(package))
        for package, _ in files
    }
    for package, path in files:
        folder = path.parent.relative_to(_package_root(package))
        component = trees[package.__name__].load_component(folder)
        if isinstance(component, ModelPipelineComponent):
            models.append(_declared(component, catalog, path))
        else:
            others.append(trees[package.__name__].build_defs_at_path(folder))
    return models, others


def _declared(component: ModelPipelineComponent, catalog: Catalog, path: Path) -> ModelPipeline:
    try:
        return component.pipeline(catalog)
    except (ValueError, LookupError) as problem:
        problem.add_note(f"Declared in {path}.")
        raise


def _package_root(package: ModuleType) -> Path:
    return Path(next(iter(package.__path__)))


def _project_root(package: ModuleType) -> Path:
    return _package_root(package).parent
