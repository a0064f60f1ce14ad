"""Where state lives, which environment this is, and which resources it has. Read when used, never at import.

The definitions are the same everywhere; MLOPS_ENV chooses one factory of resources. `local` and `test`
keep everything under one directory and need no server; `staging` and `production` read the addresses
of theirs from the environment, and fail at once where one is missing. No address is ever printed: it may hold
a password.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit
from uuid import uuid4

EnvironmentName = Literal["local", "test", "staging", "production"]
DEPLOYED: tuple[EnvironmentName, ...] = ("staging", "production")
PROJECT = Path(__file__).resolve().parents[1]
QUIET = {
    "DO_NOT_TRACK": "true",  # Evidently takes any value, MLflow only this one
    "ITERATIVE_DO_NOT_TRACK": "true",  # the library that Evidently reports through
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "true",
    "DAGSTER_DISABLE_TELEMETRY": "true",
}


class UnknownEnvironmentError(ValueError):
    """MLOPS_ENV names no environment."""

    @classmethod
    def of(cls, name: str, known: Sequence[str]) -> Self:
        return cls(f"MLOPS_ENV is {name!r} (known: {', '.join(known)}). Set one of them or unset it.")


class MissingSettingsError(ValueError):
    """An environment's servers are not, or not rightly, named."""

    @classmethod
    def of(cls, settings: Sequence[Setting]) -> Self:
        lines = [f"  {setting.variable}={setting.example}    # {setting.meaning}" for setting in settings]
        return cls(
            "\n".join(
                ["A deployed environment (MLOPS_ENV) needs these variables, missing or of another form. Set:", *lines]
            )
        )


@dataclass(frozen=True)
class Setting:
    """An address that a deployed environment reads from a variable; its scheme is one of `schemes`.

    One that people see, as a link or in the UI, is not `secret` and must hold no password.
    """

    variable: str
    schemes: tuple[str, ...]
    example: str
    meaning: str
    secret: bool = False

    @property
    def fits(self) -> bool:
        given = urlsplit(os.environ.get(self.variable, ""))
        return given.scheme in self.schemes and bool(given.netloc) and (self.secret or "@" not in given.netloc)


POSTGRES = Setting(
    "MLOPS_POSTGRES_URL",
    ("postgresql+psycopg2",),  # unnamed, SQLAlchemy 2.1 takes psycopg 3, whose bound NOTIFY dagster-postgres cannot use
    "postgresql+psycopg2://user:password@db:5432/dagster",
    "runs, events and schedules of Dagster",
    secret=True,
)
REDIS = Setting("MLOPS_REDIS_URL", ("redis", "rediss"), "redis://cache:6379/0", "online features", secret=True)
S3 = Setting("MLOPS_S3_URL", ("s3",), "s3://bucket/prefix", "the lake and the logs; AWS_* hold the credentials")
COMPUTE = "MLOPS_COMPUTE"  # the kind of machine that models are trained on where their declaration names none
COMPUTE_ADDRESS = "MLOPS_COMPUTE_ADDRESS"  # of the cluster, where that kind has one: see resources/compute
# These may be left out; `mlops up` names the two pages by the ports it found.
DAGSTER_URL, MLFLOW_UI_URL = "MLOPS_DAGSTER_URL", "MLOPS_MLFLOW_UI_URL"
REPORTS_URL, DEFAULT_REPORTS_URL = "MLOPS_REPORTS_URL", "http://127.0.0.1:3002"
MLFLOW = Setting(
    "MLOPS_MLFLOW_URL", ("http", "https"), "http://mlflow:5000", "runs and models; MLFLOW_TRACKING_USERNAME, _PASSWORD"
)
SETTINGS = (POSTGRES, REDIS, S3, MLFLOW)


def environment() -> EnvironmentName:
    """The environment named by MLOPS_ENV; `local` when it is unset."""
    name = os.environ.get("MLOPS_ENV", "local")
    known: tuple[EnvironmentName, ...] = get_args(EnvironmentName)
    for candidate in known:
        if candidate == name:
            return candidate
    raise UnknownEnvironmentError.of(name, known)


def home() -> Path:
    """The directory of all state: MLOPS_HOME, or `.mlops` beside pyproject.toml."""
    given = os.environ.get("MLOPS_HOME")
    return Path(given).expanduser().resolve() if given else PROJECT / ".mlops"


def settings() -> dict[str, str]:
    """The addresses of a deployed environment by variable; MissingSettingsError names all that are amiss."""
    if missing := [setting for setting in SETTINGS if not setting.fits]:
        raise MissingSettingsError.of(missing)
    return {setting.variable: os.environ[setting.variable].rstrip("/") for setting in SETTINGS}


def address(setting: Setting) -> str:
    """One of them, for a process that is given no others. Raises MissingSettingsError."""
    if not setting.fits:
        raise MissingSettingsError.of([setting])
    return os.environ[setting.variable].rstrip("/")


def redis_url() -> str | None:
    """The Redis of a deployed environment; None where everything is embedded."""
    return settings()[REDIS.variable] if environment() in DEPLOYED else None


def quiet_telemetry() -> None:
    """No library reports home from this process or from those it starts. Dagster's switch is in dagster.yaml too."""
    os.environ.update(QUIET)


def prepare_home() -> Path:
    """Create the directory of state with this environment's dagster.yaml, and name it DAGSTER_HOME.

    Harmless when repeated. An edited dagster.yaml is replaced: the one under `deployment/` is what counts. Where a
    cluster mounts it elsewhere, and names that DAGSTER_HOME, it stays as it is.
    """
    directory = home() / "dagster"
    if (mounted := _mounted_instance()) is not None:
        return mounted
    directory.mkdir(parents=True, exist_ok=True)
    (home() / "logs").mkdir(exist_ok=True)
    _install(directory / "dagster.yaml", _dagster_yaml(environment()))
    os.environ["DAGSTER_HOME"] = str(directory)
    return directory


def _mounted_instance() -> Path | None:
    """The DAGSTER_HOME that a deployed process was given with a dagster.yaml in it: on Kubernetes a ConfigMap."""
    given = os.environ.get("DAGSTER_HOME")
    if environment() not in DEPLOYED or not given or Path(given) == home() / "dagster":
        return None
    return Path(given) if Path(given, "dagster.yaml").is_file() else None


def _dagster_yaml(name: EnvironmentName) -> str:
    if name in DEPLOYED:
        settings()  # it reads their variables, and would name one at a time
    folder = "production" if name in DEPLOYED else "local"
    return (PROJECT / "deployment" / folder / "dagster.yaml").read_text()


def _install(path: Path, content: str) -> None:
    if path.exists() and path.read_text() == content:
        return
    beside = path.with_name(f".{path.name}.{uuid4().hex}")  # the first process of every container has the same number
    beside.write_text(content)
    os.replace(beside, path)


def resources_for(name: EnvironmentName | None = None) -> dict[str, Any]:
    """The resources of an environment (default: the one named by MLOPS_ENV), by the keys that assets ask for."""
    name = name or environment()
    return FACTORIES[name]()


def _embedded() -> dict[str, Any]:
    """Everything under MLOPS_HOME: SQLite, files, no server."""
    from resources.bentos import BentoStore
    from resources.champions import ChampionStore
    from resources.feast import FeastResource
    from resources.lake import Lake, ParquetIOManager
    from resources.mlflow import MlflowResource
    from resources.releases import ReleaseStore

    lake = Lake()
    return {
        "lake": lake,
        "io_manager": ParquetIOManager(root=lake.root),
        "feast": FeastResource(),
        "compute": _compute(),
        "mlflow": MlflowResource(ui_url=os.environ.get(MLFLOW_UI_URL, "http://127.0.0.1:5000")),
        "bentos": BentoStore(),
        "releases": ReleaseStore(),
        "champions": ChampionStore(),
        "alerts": _alerts(),
    }


def _compute() -> Any:
    """Of the kind and the cluster that the environment names; an unknown kind is refused here, before any work."""
    from resources.compute import ComputeResource, UnknownComputeError, known

    try:
        kind = known(os.environ.get(COMPUTE) or "local")
    except UnknownComputeError as problem:
        problem.add_note(f"{COMPUTE} names it.")
        raise
    return ComputeResource(kind=kind, address=os.environ.get(COMPUTE_ADDRESS, ""))


def _alerts() -> Any:
    """To every channel that is named, else to the log alone. Addresses are secrets: the UI sees variables' names."""
    from dagster import EnvVar

    from resources.alerts import AlertResource
    from resources.alerts.channels import variables

    channels = {name: EnvVar(variable) for name, variable in variables().items() if os.environ.get(variable)}
    page = {"dagster_url": EnvVar(DAGSTER_URL)} if os.environ.get(DAGSTER_URL) else {}
    given: dict[str, Any] = {"channels": channels, **page}
    return AlertResource(**given)


def _deployed() -> dict[str, Any]:
    """Servers of the environment's own; releases and Bentos lie on the volume mounted at MLOPS_HOME."""
    from resources.lake import Lake, ParquetIOManager
    from resources.mlflow import MlflowResource

    addresses = settings()
    lake = Lake(root=f"{addresses[S3.variable]}/lake")
    return {
        **_embedded(),
        "lake": lake,
        "io_manager": ParquetIOManager(root=lake.root),
        "mlflow": MlflowResource(tracking_uri=addresses[MLFLOW.variable]),
    }


FACTORIES: Mapping[EnvironmentName, Callable[[], dict[str, Any]]] = {
    "local": _embedded,
    "test": _embedded,
    "staging": _deployed,
    "production": _deployed,
}
