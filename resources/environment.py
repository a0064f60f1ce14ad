"""Where state lives and which environment this is. Read when used, never at import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

EnvironmentName = Literal["local", "test", "staging", "production"]


class UnknownEnvironmentError(ValueError):
    """MLOPS_ENV names no environment."""


def environment() -> EnvironmentName:
    """The environment named by MLOPS_ENV; `local` when it is unset."""
    name = os.environ.get("MLOPS_ENV", "local")
    known: tuple[EnvironmentName, ...] = get_args(EnvironmentName)
    for candidate in known:
        if candidate == name:
            return candidate
    raise UnknownEnvironmentError(f"MLOPS_ENV is {name!r} (known: {', '.join(known)}). Set one of them or unset it.")


def home() -> Path:
    """The directory of all state: MLOPS_HOME, or `.mlops` beside pyproject.toml."""
    given = os.environ.get("MLOPS_HOME")
    return Path(given).expanduser().resolve() if given else Path(__file__).resolve().parents[1] / ".mlops"
