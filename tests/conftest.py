"""Fixtures that every test may use: a fresh home, and a small platform on real flights with its first champion."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import dagster as dg
    import httpx

    from mlops_assets import ModelPipeline
    from mlops_assets.promotion import Promotion
    from resources.releases import ReleaseRecord

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
FIRST_DAY, FIRST_CUTOFF = "2013-06-10", "2013-07-01"


def pytest_configure(config: pytest.Config) -> None:
    settings.register_profile("ours", deadline=None)  # laws, not speeds: a busy machine breaks none of them
    settings.load_profile("ours")
    config.addinivalue_line("markers", "slow: a file that takes half a minute or more; left out by -m 'not slow'")


def use_home(monkeypatch: pytest.MonkeyPatch, root: Path) -> Path:
    monkeypatch.setenv("MLOPS_HOME", str(root))
    monkeypatch.setenv("MLOPS_ENV", "test")
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "true")  # BentoML takes only this word for yes
    return root


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh MLOPS_HOME in the test environment."""
    return use_home(monkeypatch, tmp_path / "mlops-home")


@dataclass(frozen=True)
class Ran:
    """A finished run, told by links: the last part of an asset's key."""

    result: dg.ExecuteInProcessResult

    @property
    def ok(self) -> bool:
        return self.result.success

    @property
    def trouble(self) -> str:
        """The errors of the steps that failed, with what caused them."""
        errors = [event.step_failure_data.error for event in self.result.get_step_failure_events()]
        return "\n".join(error.to_string() for error in errors if error)

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """The metadata of what was materialized, by link."""
        return {
            event.asset_key.path[-1]: {name: value.value for name, value in event.materialization.metadata.items()}
            for event in self.result.get_asset_materialization_events()
        }

    @property
    def checks(self) -> dict[str, dg.AssetCheckEvaluation]:
        return {evaluation.check_name: evaluation for evaluation in self.result.get_asset_check_evaluations()}

    @property
    def failed(self) -> set[str]:
        """The names of the checks that failed."""
        return {name for name, evaluation in self.checks.items() if not evaluation.passed}


@dataclass
class Platform:
    """The flights team's tables and one small model over MLOPS_HOME, as `mlops_assets.definitions` wires them."""

    model: ModelPipeline
    instance: dg.DagsterInstance
    cursors: dict[str, str | None] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        from resources.environment import home

        return home()

    @cached_property
    def resources(self) -> dict[str, Any]:
        from resources.environment import resources_for

        return resources_for()

    @cached_property
    def promotion(self) -> Promotion:
        from mlops_assets.promotion import Promotion

        return Promotion.of(self.resources)

    @cached_property
    def catalog(self) -> Any:
        from mlops_assets.catalog import Catalog, gather_python

        declared = gather_python()
        return Catalog.of([*declared.tables.values(), *declared.on_demand.values(), self.model])

    @cached_property
    def defs(self) -> dg.Definitions:
        import dagster as dg

        from mlops_assets.pipeline import model_definitions, table_definitions

        wired = {**self.resources, "promotion": self.promotion}
        alone = dg.Definitions(resources=wired, executor=dg.in_process_executor)
        return dg.Definitions.merge(table_definitions(self.catalog), model_definitions(self.model), alone)

    def declared(self, **changes: Any) -> Platform:
        """The same home with another declaration of the model."""
        return Platform(self.model.with_(**changes), self.instance)

    # -- runs

    def fill(self, first: str, last: str) -> Ran:
        """Backfill the tables of a range of days in one run."""
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        return self._job(f"{self.model.team}__tables", tags=tags)

    def train(self, cutoff: str = FIRST_CUTOFF, tags: Mapping[str, str] | None = None) -> Ran:
        """The training job: from the training set to the endpoint."""
        from mlops_assets.retraining import training_job_name

        return self._job(training_job_name(self.model), partition_key=cutoff, tags=tags)

    def run(
        self, *links: str, partition: str | None = None, model: bool = True, config: Mapping[str, Any] | None = None
    ) -> Ran:
        """Materialize links of the model (or, with `model=False`, assets of the team by their path).

        `config` is the first one's.
        """
        import dagster as dg

        from mlops_assets.links.spec import link_key

        team = self.model.team
        keys = [link_key(self.model, link) if model else dg.AssetKey([team, *link.split("/")]) for link in links]
        ops = {"ops": {"__".join(keys[0].path): {"config": config}}} if config else None
        return self._job("__ASSET_JOB", config=ops, partition_key=partition, asset_selection=keys)

    def publish_online(self, at: datetime, *views: str) -> Ran:
        """Materialize the online assets of all views, or of those named, as of a moment."""
        from mlops_assets.links.online import online_key

        keys = [online_key(view) for view in self.catalog.views if not views or view.name in views]
        ops = {"__".join(key.path): {"config": {"as_of": at.isoformat()}} for key in keys}
        return self._job("__ASSET_JOB", config={"ops": ops}, asset_selection=keys)

    def _job(self, name: str, *, config: Mapping[str, Any] | None = None, **options: Any) -> Ran:
        job = (
            self.defs.resolve_implicit_global_asset_job_def()
            if name == "__ASSET_JOB"
            else self.defs.resolve_job_def(name)
        )
        options = {"raise_on_error": False, **options}
        return Ran(job.execute_in_process({**QUIET, **(config or {})}, self.instance, **options))

    def tick(self, sensor: str) -> dg.SensorResult:
        """Evaluate a sensor of the model as the daemon would, keeping its cursor."""
        import dagster as dg

        name = f"{self.model.team}__{self.model.name}__{sensor}"
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursors.get(name),
            definitions=self.defs,
            resources={"alerts": self.resources["alerts"]},
        )
        result = self.defs.resolve_sensor_def(name)(context)
        assert isinstance(result, dg.SensorResult)
        self.cursors[name] = result.cursor
        return result

    # -- what is published

    @property
    def published(self) -> dict[str, Any]:
        """What callers and the next run go by: versions, the alias, the release, their histories, the Bentos."""
        stores, model = self.promotion, self.model
        return {
            "versions": [version.version for version in stores.mlflow.versions(model.registered_name)],
            "alias": stores.mlflow.alias(model.registered_name, "champion"),
            "moves": stores.champions.history(model.id),
            "release": stores.releases.read(model.id),
            "changes": stores.releases.history(model.id),
            "bentos": stores.bentos.list(),
        }

    def mlflow_runs(self, status: str | None = None) -> list[Any]:
        """The training runs in MLflow without their trials, newest first."""
        client = self.promotion.mlflow.client()
        experiment = client.get_experiment_by_name(self.model.id).experiment_id
        runs = [run for run in client.search_runs([experiment]) if "mlflow.parentRunId" not in run.data.tags]
        return [run for run in runs if status in (None, run.info.status)]

    def trials(self, run_id: str) -> list[Any]:
        """The child runs of a training run."""
        client = self.promotion.mlflow.client()
        experiment = client.get_run(run_id).info.experiment_id
        return list(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'"))

    # -- the endpoint

    @contextmanager
    def endpoint(self) -> Iterator[Endpoint]:
        """The serving app over this home, asked without a network; it follows the release record as in production."""
        import httpx
        from anyio.from_thread import start_blocking_portal

        from mlops_assets.serving.app import Serving, create_app

        app = create_app(Serving.following)
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(app.router.lifespan_context(app)),
        ):
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
            yield Endpoint(
                self.model.id, lambda *words, **options: portal.call(partial(client.request, *words, **options))
            )


@dataclass(frozen=True)
class Endpoint:
    """The routes of one model."""

    model: str
    request: Callable[..., httpx.Response]

    def post(self, rows: Sequence[Mapping[str, Any]], at: datetime) -> httpx.Response:
        return self.request("POST", f"/{self.model}/predict", json={"rows": list(rows), "at": at.isoformat()})

    def ask(self, rows: Sequence[Mapping[str, Any]], at: datetime) -> list[dict[str, Any]]:
        answer = self.post(rows, at)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["predictions"])

    def follow(self, release: ReleaseRecord | None) -> None:
        """Until the process serves what the record says; it looks five times a second."""
        assert release is not None
        deadline = time.monotonic() + 20
        while (found := self._release()["revision"]) != release.revision:
            assert time.monotonic() < deadline, f"revision {release.revision} is not followed, {found} is"
            time.sleep(0.02)

    @property
    def serving(self) -> set[str]:
        """The versions that answer."""
        return {variant["version"] for variant in self._release()["serving"]}

    def _release(self) -> dict[str, Any]:
        return dict(self.request("GET", f"/{self.model}/release").json())


def small_model() -> ModelPipeline:
    """`flights/late_arrival` as it is declared, in few rounds, on three weeks."""
    from mlops_assets import Gate, IntRange, Monitor, Search, Serve, TimeSplit
    from mlops_assets.trainers import XGBoostClassifier
    from model_assets.flights.late_arrival import late_arrival

    day = timedelta(days=1)
    return late_arrival.with_(
        trainer=XGBoostClassifier(n_estimators=30, learning_rate=0.2),
        split=TimeSplit(holdout=5 * day, validation=3 * day),
        search=Search(trials=2, space={"max_depth": IntRange(2, 5)}),
        gate=Gate("roc_auc", at_least=0.55, beats_champion_by=-0.1, slices=["carrier"], slice_tolerance=0.5),
        serve=Serve(canary=[40, 70, 100]),
        monitor=Monitor(window=3 * day, min_rows=100, cooldown=3 * day, drifted_share=0.2),
    )


@contextmanager
def _opened(root: Path) -> Iterator[Platform]:
    import dagster as dg

    from resources.environment import prepare_home

    with pytest.MonkeyPatch.context() as monkeypatch:
        use_home(monkeypatch, root)
        monkeypatch.setenv("DAGSTER_HOME", str(root / "dagster"))
        prepare_home()
        with dg.DagsterInstance.get() as instance:
            yield Platform(small_model(), instance)


def _copied(first_champion: Path, root: Path) -> Path:
    """The home at another place; MLflow wrote down where its artifacts lay."""
    shutil.copytree(first_champion, root)
    columns = [("experiments", "artifact_location"), ("runs", "artifact_uri"), ("model_versions", "source")]
    with closing(sqlite3.connect(root / "mlflow" / "mlflow.db")) as database, database:
        for table, column in columns:
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(first_champion), str(root)))
    return root


@pytest.fixture(scope="session")
def first_champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three weeks of tables and a released first champion; never written to again, only copied."""
    root = tmp_path_factory.mktemp("first-champion") / "home"
    with _opened(root) as platform:
        for ran in (platform.fill(FIRST_DAY, "2013-06-30"), platform.train()):
            assert ran.ok, ran.trouble
    return root


@pytest.fixture
def platform(first_champion: Path, tmp_path: Path) -> Iterator[Platform]:
    """The platform of `first_champion`, in a home of the test's own."""
    with _opened(_copied(first_champion, tmp_path / "home")) as platform:
        yield platform


@pytest.fixture(scope="module")
def empty_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A home where nothing was published yet, for the story of another team's model."""
    with _opened(tmp_path_factory.mktemp("empty") / "home") as platform:
        yield platform


@pytest.fixture(scope="module")
def module_platform(first_champion: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The same for a story that a module tells once and looks at often."""
    with _opened(_copied(first_champion, tmp_path_factory.mktemp("story") / "home")) as platform:
        yield platform
