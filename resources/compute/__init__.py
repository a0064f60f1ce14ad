"""Where heavy work runs: one file per kind of machine, each with a function `run(entrypoint, arguments)`.

JSON goes in and JSON comes out; data goes by path. So that a kind can be swapped for another, every kind,
also the local one, lets nothing else through.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol, Self

import dagster as dg


class Compute(Protocol):
    """A kind of machine."""

    def run(self, entrypoint: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Call the function named by `package.module:function` with `arguments`; its errors are raised here."""
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


def kinds() -> list[str]:
    """The kinds of machine that have a file here."""
    return sorted(module.name for module in iter_modules(__path__))


class ComputeResource(dg.ConfigurableResource[Any]):
    """Runs work on machines of one kind."""

    kind: str = "local"

    def run(self, entrypoint: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See `Compute.run`. Raises UnknownComputeError, EntrypointError, or what the work itself raises."""
        if self.kind not in kinds():
            raise UnknownComputeError.of(self.kind, kinds())
        machine: Compute = import_module(f"{__name__}.{self.kind}")
        result: dict[str, Any] = _as_json(entrypoint, machine.run(entrypoint, _as_json(entrypoint, arguments)))
        return result


def _as_json(entrypoint: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as problem:
        raise EntrypointError.of(
            entrypoint, f"was given or returned what is not JSON: {problem}", "Pass paths and numbers."
        ) from problem
