"""MLflow: runs and registered model versions, through its client and explicit run ids.

There is no active run and no global tracking URI: two threads never log into each other's runs. A run
always ends, with the status that is true: FINISHED, FAILED on an error, KILLED when it was interrupted.
Without a URI the store is `mlflow/mlflow.db` and `mlflow/artifacts/` under MLOPS_HOME.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import dagster as dg
from dagster import DagsterExecutionInterruptedError
from pydantic import PrivateAttr

from resources.environment import QUIET, home, quiet_telemetry

if TYPE_CHECKING:
    import polars as pl
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Metric

    from resources.tracking.archive import Archived
    from resources.tracking.delivery import Loop

Result = TypeVar("Result")
PARENT_TAG = "mlflow.parentRunId"
CONTINUES, CONTINUED_BY = "continues", "continued_by"  # tags of a run that took up another's work, and of that other
KNOWN = 20  # so many versions are named to who asked for another
METRICS_A_BATCH, PAIRS_A_BATCH = 800, 100  # MLflow takes 1000 metrics, 100 params and 100 tags, 1000 in all
SAFE = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
LOOPBACK = "127.0.0.1"
# The pages that MLflow 3 opens first are those of its other half, for agents and prompts.
TRAINING_PAGES = "workflowType=machine_learning"
# Of a tracking server: its own database, if this process may read it. It holds a password.
DATABASE = "MLOPS_MLFLOW_DATABASE"

logger = logging.getLogger(__name__)


class MlflowUnreachableError(ConnectionError):
    """The tracking server did not answer, also after retries."""

    @classmethod
    def of(cls, uri: str, retries: int) -> Self:
        return cls(
            f"MLflow at {uri} did not answer, after {retries} retries. Start it with `make up`, "
            "or mend the address (MLOPS_MLFLOW_URL)."
        )


class UnknownModelVersionError(LookupError):
    """A model version was asked for that the registry does not hold."""

    @classmethod
    def of(cls, name: str, version: str, known: list[str]) -> Self:
        return cls(
            f"Registered model {name!r} has no version {version!r} (known: {', '.join(known) or 'none'}). "
            "Materialize the model's candidate to create one."
        )


class MissingArtifactError(LookupError):
    """A run does not hold the artifacts that a version was to be made of."""

    @classmethod
    def of(cls, run_id: str, artifact_path: str) -> Self:
        return cls(f"Run {run_id} holds no artifact {artifact_path!r}. Log the directory there first.")


@dataclass(frozen=True)
class Version:
    """One version of a registered model; `source` is where its artifacts lie."""

    name: str
    version: str
    run_id: str
    source: str
    tags: Mapping[str, str]
    created_at: datetime


class MlflowResource(dg.ConfigurableResource[Any]):
    """One tracking server and registry.

    `tracking_uri` is `sqlite:///...` or `http(s)://...`; `artifact_root` is where the artifacts of new
    experiments go (left empty, MLOPS_HOME for SQLite and the server's own choice over HTTP); `ui_url` is
    where people look when the store itself has no web address. A refused connection is tried again `retries` times,
    waiting 0, 2, 4, 8... seconds; an answer in the 4xx range never is.
    """

    tracking_uri: str = ""
    artifact_root: str = ""
    ui_url: str = f"http://{LOOPBACK}:5000"
    retries: int = 4

    _client: Any = PrivateAttr(default=None)

    @property
    def uri(self) -> str:
        return self.tracking_uri or default_tracking_uri()

    def client(self) -> "MlflowClient":
        """The native client, for whatever has no verb here; made at first use, which creates SQLite's schema."""
        quiet_telemetry()
        os.environ.update(SAFE)
        os.environ.update(MLFLOW_HTTP_REQUEST_MAX_RETRIES=str(self.retries), MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="1")
        if self._client is None:
            from mlflow import MlflowClient

            if not self.tracking_uri:
                (home() / "mlflow").mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            self._prepare()
        return self._client

    @property
    def owned_database(self) -> str | None:
        """The database that this resource itself writes to, by its URL; None where it asks a server over HTTP."""
        from resources.tracking.tables import ForeignSchemaError, engine

        if self.uri.startswith("http"):
            return None
        self.client()  # which creates the schema
        try:
            engine(self.uri)
        except ForeignSchemaError as problem:
            logger.warning("MLflow is used by its API alone, which is slower: %s", problem)
            return None
        return self.uri

    @property
    def database(self) -> str | None:
        """The database to search in: its own, or that of the server where MLOPS_MLFLOW_DATABASE names it."""
        return (os.environ.get(DATABASE) or None) if self.uri.startswith("http") else self.owned_database

    def loop(
        self, run_id: str, every: float = 5.0, meanwhile: Callable[[], object] | None = None
    ) -> AbstractContextManager["Loop"]:
        """What a training loop logs with, in microseconds: `with mlflow.loop(run_id) as log: log(step, loss=0.3)`.

        MLflow is told every few seconds and at the end; what it does not take then waits in a spool of this home.
        `meanwhile` is called as often, by another thread.
        """
        from resources.tracking import delivery

        return delivery.loop(self, run_id, every, meanwhile)

    def _prepare(self) -> None:
        """Bring our indices to an embedded database; a server's get them by `mlops migrate`."""
        from sqlalchemy.exc import SQLAlchemyError

        from resources.tracking.migration import migrate
        from resources.tracking.tables import ForeignSchemaError

        if self.uri.startswith("sqlite"):
            try:
                migrate(self.uri)
            except (ForeignSchemaError, SQLAlchemyError, OSError) as problem:  # searches alone are slower without
                logger.warning("MLflow's database %s keeps its own indices: %s", self.uri, problem)

    def experiment(self, name: str) -> str:
        """The id of the experiment, created when there is none; two creators at once get the same one."""
        found = self._ask(self.client().get_experiment_by_name, name)
        if found is None:
            self._created(self.client().create_experiment, name, artifact_location=self._artifact_root())
            found = self._ask(self.client().get_experiment_by_name, name)
        return str(found.experiment_id)

    @contextmanager
    def run(
        self,
        experiment: str,
        name: str,
        tags: Mapping[str, object] | None = None,
        parent: str | None = None,
        continues: str | None = None,
    ) -> Iterator[str]:
        """A run of an experiment, by names; yields the run's id and ends the run truthfully.

        FINISHED, FAILED when the block raises, KILLED when it is interrupted (Ctrl-C, a terminated Dagster run).
        `continues` is the run of work that is taken up again: one that nobody ended, since its process was killed,
        goes on under its id; of one that ended badly there is a new run, and each names the other.
        """
        run_id = self._going_on(continues, tags or {})
        if run_id is None:
            before = {CONTINUES: continues} if continues else {}
            run_id = self._start(self.experiment(experiment), name, {**(tags or {}), **before}, parent)
        if continues and continues != run_id:
            self._found(self.client().set_tag, continues, CONTINUED_BY, run_id)
        status = "FAILED"
        try:
            yield run_id
            status = "FINISHED"
        except (KeyboardInterrupt, DagsterExecutionInterruptedError):
            status = "KILLED"
            raise
        finally:
            self._ask(self.client().set_terminated, run_id, status)

    def abandon(self, run_id: str) -> bool:
        """End a run as KILLED that nobody ended, since its process was killed; False where there was nothing to end."""
        found = self._found(self.client().get_run, run_id)
        if found is None or found.info.status != "RUNNING":
            return False
        self._ask(self.client().set_terminated, run_id, "KILLED")
        return True

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> None:
        """Write many values in few requests; about 290 times cheaper a metric than one at a time."""
        from mlflow.entities import Metric, Param, RunTag

        now = _milliseconds(datetime.now(UTC))
        numbers = [Metric(name, float(value), now, 0) for name, value in (metrics or {}).items()]
        pairs = [Param(name, str(value)) for name, value in (params or {}).items()]
        marks = [RunTag(name, str(value)) for name, value in (tags or {}).items()]
        while numbers or pairs or marks:
            batch = numbers[:METRICS_A_BATCH], pairs[:PAIRS_A_BATCH], marks[:PAIRS_A_BATCH]
            self._ask(self.client().log_batch, run_id, *batch)
            numbers, pairs, marks = numbers[METRICS_A_BATCH:], pairs[PAIRS_A_BATCH:], marks[PAIRS_A_BATCH:]

    def log_points(self, run_id: str, points: "list[Metric]") -> None:
        """At most a thousand values with their steps and times in one request; what MLflow has already is left out."""
        self._ask(self.client().log_batch, run_id, points)

    def log_directory(self, run_id: str, directory: Path, artifact_path: str) -> None:
        """Make a directory what the run holds under `artifact_path`: each content once, and a manifest beside."""
        from resources.artifacts import runs

        artifacts = self._ask(self.client().get_run, run_id).info.artifact_uri
        self._ask(runs.published, directory, artifacts, artifact_path, self.uri)

    def log_trials(self, parent: str, metric: str, trials: Iterable[Mapping[str, Any]]) -> list[str]:
        """Each trial of a search as a child run, with its own times, once; returns the ids of the new ones.

        A trial holds number, params, value (None where it has none), state (COMPLETE, PRUNED or FAIL), started_at
        (ISO), seconds. One that was given up has the metric `pruned_at`, its last round; the tag `trial_state` says so.
        """
        experiment = self._ask(self.client().get_run, parent).info.experiment_id
        children = self._ask(
            self.client().search_runs, [experiment], f"tags.`{PARENT_TAG}` = '{parent}'", max_results=5000
        )
        known = {run.data.tags.get("trial") for run in children if run.info.status != "RUNNING"}
        return [
            self._log_trial(experiment, parent, metric, trial) for trial in trials if str(trial["number"]) not in known
        ]

    def register(self, name: str, run_id: str, artifact_path: str, tags: Mapping[str, object] | None = None) -> str:
        """Make a version of the model `name` from a run's artifacts; returns the version, counted from "1"."""
        from resources.artifacts import runs

        client = self.client()
        source = f"{self._ask(client.get_run, run_id).info.artifact_uri}/{artifact_path}"
        digest = self._ask(runs.digest, source, self.uri)
        tags = {**(tags or {}), **({runs.TAG: digest} if digest else {})}
        if digest is None and not self._ask(client.list_artifacts, run_id, artifact_path):
            raise MissingArtifactError.of(run_id, artifact_path)
        self._created(client.create_registered_model, name)
        made = self._ask(client.create_model_version, name, source, run_id=run_id, tags=_strings(tags))
        return str(made.version)

    def registered(self, name: str, run_id: str) -> str | None:
        """The newest version that was made from a run; None when there is none."""
        found = self._ask(self.client().search_model_versions, f"name = '{name}' and run_id = '{run_id}'")
        return max((str(item.version) for item in found), key=int, default=None)

    def tag_version(self, name: str, version: str, tags: Mapping[str, object]) -> None:
        for key, value in tags.items():
            self._tag_version(name, version, key, str(value))

    def _tag_version(self, name: str, version: str, key: str, value: str) -> None:
        """MLflow looks for a tag, then adds or changes it: who adds one just as another does is refused."""
        from mlflow.exceptions import MlflowException

        try:
            self._ask(self.client().set_model_version_tag, name, version, key, value)
        except MlflowException as problem:
            if "IntegrityError" not in str(problem):
                raise
            self._ask(self.client().set_model_version_tag, name, version, key, value)

    def experiments(self) -> "list[Experiment]":
        """Every experiment that is not deleted."""
        return self._pages(self.client().search_experiments)

    def search_page(
        self, experiment_ids: list[str], where: str, order_by: Sequence[str], limit: int, token: str | None
    ) -> Any:
        """One page of MLflow's own search, with the `token` of the next."""
        asked = {"max_results": limit, "order_by": list(order_by), "page_token": token}
        return self._ask(self.client().search_runs, experiment_ids, where, **asked)

    def metric_history(self, run_id: str, metric: str) -> "list[Metric]":
        """Every value of a run's metric that MLflow holds, in order of steps."""
        found = self._ask(self.client().get_metric_history, run_id, metric)
        return sorted(found, key=lambda point: (point.step, point.timestamp))

    def history(self, metric: str, run_ids: Sequence[str]) -> "pl.DataFrame":
        """Every value of a metric of these runs, archived or not: run_uuid, key, step, timestamp (ms), value."""
        from resources.tracking import archive

        if (database := self.database) is not None:
            return archive.history(database, metric, run_ids)
        return archive.with_archived(metric, run_ids, {run: self.metric_history(run, metric) for run in run_ids})

    def archive(self, now: datetime, **bounds: Any) -> "Archived":
        """Move old metric history and old versions to Parquet, as `resources.tracking.archive` says."""
        from resources.tracking import archive

        if (database := self.database) is None:
            raise archive.NoDatabaseError.of(self.uri)
        return archive.archive(database, now, **bounds)

    def versions(
        self,
        name: str,
        having: Mapping[str, str] | None = None,
        lacking: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> list[Version]:
        """The versions of a model, newest first: with all tags of `having`, with none of `lacking`, so many at most.

        None for a model that was never registered.
        """
        return list(islice(self.newest_first(name, having, lacking), limit))

    def newest_first(
        self, name: str, having: Mapping[str, str] | None = None, lacking: Mapping[str, str] | None = None
    ) -> Iterator[Version]:
        """The same one by one: a model may have 100,000 versions, and who looks for the newest reads few of them."""
        having, lacking = having or {}, lacking or {}
        if (database := self.database) is None:
            return self._versions_by_api(name, having, lacking)
        from resources.tracking.search import version_rows

        return map(_version_of, version_rows(database, name, having, lacking))

    def _versions_by_api(self, name: str, having: Mapping[str, str], lacking: Mapping[str, str]) -> Iterator[Version]:
        conditions = [f"name = '{name}'", *(f"tags.`{key}` = '{value}'" for key, value in having.items())]
        token = None
        while True:
            asked = {"order_by": ["version_number DESC"], "page_token": token}
            page = self._ask(self.client().search_model_versions, " and ".join(conditions), **asked)
            for item in map(_version, page):
                if not lacking.items() & item.tags.items():
                    yield item
            token = page.token
            if not token:
                return

    def version(self, name: str, version: str) -> Version:
        found = self._found(self.client().get_model_version, name, version)
        if found is None:
            raise UnknownModelVersionError.of(
                name, version, [item.version for item in self.versions(name, limit=KNOWN)]
            )
        return _version(found)

    def alias(self, name: str, alias: str) -> str | None:
        """The version that an alias points to; None when there is no such alias or model."""
        found = self._found(self.client().get_model_version_by_alias, name, alias)
        return None if found is None else str(found.version)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias to a version. No compare-and-set: `resources.champions` serialises promotions.

        Asked of the registry at once: MLflow's client would read all versions first, to see that this is no prompt.
        """
        from mlflow.tracking._model_registry.client import ModelRegistryClient

        self.version(name, version)
        registry = ModelRegistryClient(self.uri, self.uri)
        self._ask(registry.set_registered_model_alias, name, alias, version)

    def download(self, name: str, version: str) -> Path:
        """The directory of a version's artifacts: in place where they are local files, else downloaded once.

        Every byte is compared with what was registered. Raises DamagedArtifactError, ForeignArtifactsError.
        """
        from resources.artifacts import runs

        found = self.version(name, version)
        return self._ask(runs.fetched, found.source, found.run_id, self.uri, found.tags.get(runs.TAG))

    def run_url(self, run_id: str) -> str:
        """Where the run is seen in the UI."""
        experiment = self._ask(self.client().get_run, run_id).info.experiment_id
        return f"{self._web()}/#/experiments/{experiment}/runs/{run_id}?{TRAINING_PAGES}"

    def version_url(self, name: str, version: str) -> str:
        """Where the version is seen in the UI."""
        return f"{self._web()}/#/models/{name}/versions/{version}?{TRAINING_PAGES}"

    def _pages(self, search: Callable[..., Any]) -> list[Any]:
        found, token = [], None
        while True:
            page = self._ask(search, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _web(self) -> str:
        return (self.uri if self.uri.startswith("http") else self.ui_url).rstrip("/")

    def _artifact_root(self) -> str | None:
        if self.artifact_root or self.uri.startswith("http"):
            return self.artifact_root or None
        return default_artifact_root().as_uri()

    def _going_on(self, run_id: str | None, tags: Mapping[str, object]) -> str | None:
        """The run itself where it did not end badly; one that ended well was killed before anyone was told."""
        found = self._found(self.client().get_run, run_id) if run_id else None
        if run_id is None or found is None or found.info.lifecycle_stage != "active":
            return None
        if found.info.status not in ("RUNNING", "FINISHED"):
            return None
        self._ask(self.client().update_run, run_id, "RUNNING")
        self.log(run_id, tags=tags)
        return run_id

    def _start(
        self, experiment: str, name: str, tags: Mapping[str, object], parent: str | None, at: int | None = None
    ) -> str:
        lineage = {PARENT_TAG: parent} if parent else {}
        made = self._ask(
            self.client().create_run, experiment, start_time=at, tags=_strings({**tags, **lineage}), run_name=name
        )
        return str(made.info.run_id)

    def _log_trial(self, experiment: str, parent: str, metric: str, trial: Mapping[str, Any]) -> str:
        started = _milliseconds(datetime.fromisoformat(trial["started_at"]))
        tags = {"trial": trial["number"], "trial_state": trial["state"]}
        run_id = self._start(experiment, f"trial {trial['number']}", tags, parent, at=started)
        values = {metric: trial["value"], "pruned_at": trial.get("pruned_at")}
        told = {name: value for name, value in values.items() if value is not None}
        self.log(run_id, params=trial["params"], metrics=told)
        status = "FAILED" if trial["state"] == "FAIL" else "FINISHED"
        self._ask(self.client().set_terminated, run_id, status, started + round(trial["seconds"] * 1000))
        return run_id

    def _ask(self, call: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call the client; a server that cannot be reached is an error of its own, told from a refusal."""
        from mlflow.exceptions import MlflowException
        from requests.exceptions import ConnectionError as NoConnection

        try:
            return call(*args, **kwargs)
        except (MlflowException, NoConnection) as problem:
            if isinstance(problem, NoConnection) or isinstance(problem.__context__, NoConnection):
                raise MlflowUnreachableError.of(self.uri, self.retries) from problem
            raise

    def _found(self, call: Callable[..., Result], *args: Any) -> Result | None:
        """What the registry holds, None where it holds none; it calls a missing alias an invalid parameter."""
        from mlflow.exceptions import MlflowException

        try:
            return self._ask(call, *args)
        except MlflowException as problem:
            if problem.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _created(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Create something by name, unless somebody else just did."""
        from mlflow.exceptions import MlflowException

        try:
            self._ask(call, *args, **kwargs)
        except MlflowException as problem:
            if problem.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def default_tracking_uri() -> str:
    return f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def default_artifact_root() -> Path:
    return home() / "mlflow" / "artifacts"


def server_command(
    port: int, *, tracking_uri: str | None = None, artifact_root: Path | None = None
) -> tuple[list[str], dict[str, str]]:
    """The argv and environment of MLflow's server and UI on loopback, for the store under MLOPS_HOME by default.

    Only requests for this host and pages of its own are answered; pickle loading, jobs and telemetry are off.
    It is several processes: start it in a session of its own and stop the whole group.
    """
    artifacts = artifact_root or default_artifact_root()
    artifacts.mkdir(parents=True, exist_ok=True)
    hosts = [f"{LOOPBACK}:{port}", f"localhost:{port}"]
    options = {
        "--backend-store-uri": tracking_uri or default_tracking_uri(),
        "--artifacts-destination": str(artifacts),
        "--host": LOOPBACK,
        "--port": str(port),
        "--workers": "1",
        "--allowed-hosts": ",".join(hosts),
        "--cors-allowed-origins": ",".join(f"http://{host}" for host in hosts),
    }
    argv = [sys.executable, "-m", "mlflow", "server", *(word for option in options.items() for word in option)]
    return argv, {**os.environ, **QUIET, **SAFE}


def _version(item: Any) -> Version:
    created = datetime.fromtimestamp(item.creation_timestamp / 1000, UTC)
    return Version(item.name, str(item.version), item.run_id, item.source, dict(item.tags), created)


def _version_of(row: Mapping[str, Any]) -> Version:
    created = datetime.fromtimestamp(row["creation_time"] / 1000, UTC)
    return Version(row["name"], str(row["version"]), row["run_id"] or "", row["source"], row["tags"], created)


def _strings(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)
