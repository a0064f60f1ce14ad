"""This process: the work runs here and now. Training uses every core by itself, so that a fork would gain nothing."""

from __future__ import annotations

from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import dagster as dg

from resources.compute import EntrypointError, Work

_asking: ContextVar[dg.AssetExecutionContext | None] = ContextVar("asking", default=None)


def run(work: Work) -> dict[str, Any]:
    entrypoint = work.entrypoint
    module, _, name = entrypoint.partition(":")
    if not name or not _exists(module):
        raise EntrypointError.of(entrypoint, "names no module and function", "Write it as package.module:function.")
    function = getattr(import_module(module), name, None)
    if not callable(function):
        raise EntrypointError.of(entrypoint, f"names nothing to call in {module}", "Name a function of that module.")
    before = _asking.set(work.context)
    try:
        result: dict[str, Any] = function(work.arguments)
    finally:
        _asking.reset(before)
    return result


def asking() -> dg.AssetExecutionContext | None:
    """The asset that asks for the work of this thread, for work that hands out more; None where nobody does."""
    return _asking.get()


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
