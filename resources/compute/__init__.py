"""Where heavy work runs: one file per kind of machine, each with a function `run(work)`.

JSON goes in and JSON comes out; data goes by path. So that a kind can be swapped for another, every kind,
also the local one, lets nothing else through.
"""

import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from pkgutil import iter_modules
from typing import Any, Protocol, Self

import dagster as dg

from resources.environment import QUIET, home

logger = logging.getLogger(__name__)

# A model may come out differently where one of these is another.
PACKAGES = (
    "numpy",
    "polars",
    "xgboost",
    "lightgbm",
    "scikit-learn",
    "skops",
    "onnx",
    "optuna",
    "torch",
    "mlx",
    "keras",
)


@dataclass(frozen=True)
class Work:
    """A function named by `package.module:function`, and its arguments, which are JSON.

    `resources` is what it needs of a machine, as `declarations.Resources.document` says it; kinds that cannot choose
    their machine leave it. `context` is the asset that asks: what the work says arrives there; only work in this
    process can do without.
    `python` is the interpreter of another process, by default this one's; `address` the cluster, for kinds that have
    one, empty for what the kind does without.
    """

    entrypoint: str
    arguments: Mapping[str, Any]
    resources: Mapping[str, Any] = field(default_factory=dict)
    context: dg.AssetExecutionContext | None = None
    python: str = sys.executable
    address: str = ""

    @property
    def packages(self) -> dict[str, str]:
        """What the work is expected to find where it runs."""
        return versions(PACKAGES)

    @property
    def document(self) -> dict[str, Any]:
        """What another process is told of it: see `_worker`."""
        return {"entrypoint": self.entrypoint, "arguments": dict(self.arguments), "packages": self.packages}

    @property
    def environment(self) -> dict[str, str]:
        """What the process must find besides what its machine has: state, silence, and as many threads as here.

        The number of threads decides over a model's last bits; `cpus` of the resources does where it is declared.
        """
        cpus = self.resources.get("cpus")
        threads = str(ceil(cpus)) if cpus else os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or 1)
        named = {name: os.environ[name] for name in ("MLOPS_ENV",) if name in os.environ}
        return {"OMP_NUM_THREADS": threads, "MLOPS_HOME": str(home()), **named, **QUIET}

    @property
    def asking(self) -> dg.AssetExecutionContext:
        """The asset that another process tells; raises EntrypointError where nobody asks."""
        if self.context is None:
            raise EntrypointError.of(
                self.entrypoint, "was to run in another process, with nobody to tell", "Pass the asset's context."
            )
        return self.context


class Compute(Protocol):
    """A kind of machine."""

    def run(self, work: Work) -> dict[str, Any]:
        """Do the work once; what it returns.

        Raises what it raises, here or as WorkFailedError; WorkerLostError, NoWorkerError, OtherEnvironmentError.
        """
        ...


class UnknownComputeError(LookupError):
    """Compute of a kind was asked for that no file here provides."""

    @classmethod
    def of(cls, kind: str, known: list[str]) -> Self:
        return cls(
            f"There is no compute of kind {kind!r} (known: {', '.join(known)}). "
            f"Name one of these, or add resources/compute/{kind}.py."
        )


class EntrypointError(ValueError):
    """An entrypoint names nothing that can be called, or what goes in or comes out is not JSON."""

    @classmethod
    def of(cls, entrypoint: str, problem: str, fix: str) -> Self:
        return cls(f"Entrypoint {entrypoint!r} {problem}. {fix}")


class WorkFailedError(RuntimeError):
    """The work raised an error in another process; it is told with its traceback there."""

    @classmethod
    def of(cls, entrypoint: str, kind: str, message: str, trace: str) -> Self:
        return cls(f"{entrypoint} failed: {kind}: {message}\nWhere it ran:\n{trace}")


class WorkerLostError(RuntimeError):
    """The process that did the work died, or ended without a result. Another may be tried: see `Resources.retries`."""

    @classmethod
    def of(cls, entrypoint: str, cause: str, fix: str) -> Self:
        return cls(f"The worker that did {entrypoint} {cause}. {fix}")


class NoWorkerError(RuntimeError):
    """No machine was to be had, and nothing was begun: no cluster answers, or none of its machines is large enough."""

    @classmethod
    def of(cls, entrypoint: str, problem: str, fix: str) -> Self:
        return cls(f"No worker for {entrypoint}: {problem}. {fix}")


class OtherEnvironmentError(RuntimeError):
    """The worker has other versions of the packages that the work's result depends on."""

    @classmethod
    def of(cls, differences: Mapping[str, tuple[str | None, str | None]]) -> Self:
        told = ", ".join(
            f"{name} {there or 'is missing'} instead of {here}" for name, (here, there) in sorted(differences.items())
        )
        return cls(
            f"The worker's environment differs, and nothing was started: {told}. Install both from constraints.txt."
        )


def kinds() -> list[str]:
    """The kinds of machine that have a file here."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed here."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class ComputeResource(dg.ConfigurableResource[Any]):
    """Runs work on machines of one kind; `python` is the interpreter of other processes, by default this one's.

    `address` is the cluster's, where the kind has one and it is not this machine's own; work of another kind has none.
    """

    kind: str = "local"
    python: str = ""
    address: str = ""

    def run(
        self,
        entrypoint: str,
        arguments: Mapping[str, Any],
        context: dg.AssetExecutionContext | None = None,
        kind: str | None = None,
        resources: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """See `Work` and `Compute.run`; `kind` is another than the environment's, for one model, say.

        A worker that is lost is replaced as often as `retries` of the resources says, whatever the kind.
        Raises UnknownComputeError, EntrypointError, OtherEnvironmentError, NoWorkerError before anything is started.
        """
        kind = known(kind or self.kind)
        machine: Compute = import_module(f"{__name__}.{kind}")
        given, address = _as_json(entrypoint, arguments), self.address if kind == self.kind else ""
        work = Work(entrypoint, given, dict(resources or {}), context, self.python or sys.executable, address)
        result: dict[str, Any] = _as_json(entrypoint, _persistently(machine, work))
        return result


def _persistently(machine: Compute, work: Work) -> dict[str, Any]:
    """The work, begun again on another worker where one was lost. What it wrote down (a checkpoint) it goes on from."""
    for left in range(work.resources.get("retries", 0), 0, -1):
        try:
            return machine.run(work)
        except WorkerLostError as loss:
            log = work.context.log if work.context else logger
            log.warning("%s It is begun again; retries left: %s", loss, left - 1)
    return machine.run(work)


def known(kind: str) -> str:
    """The kind, if a file here provides it. Raises UnknownComputeError."""
    if kind not in kinds():
        raise UnknownComputeError.of(kind, kinds())
    return kind


def _as_json(entrypoint: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as problem:
        raise EntrypointError.of(
            entrypoint, f"was given or returned what is not JSON: {problem}", "Pass paths and numbers."
        ) from problem
