"""Asking a command-line tool of the operating system that may not be there, or not be allowed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

SECONDS = 5.0

Ask = Callable[[Sequence[str]], str | None]


def output(command: Sequence[str]) -> str | None:
    """What a command prints; None where it is not here, not allowed, or hangs."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout if ran.returncode == 0 else None
