"""Evidently's pages of the year: drawn for Mondays alone. The numbers and verdicts are of every day, over all rows.

A page takes longer than the rest of its report, and a thousand of them would take half of the year's time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

WRITERS = ("write_drift_report", "write_performance_report", "write_quality_report")


@contextmanager
def mondays_only() -> Iterator[None]:
    """For the time of the block."""
    from mlops_assets.monitoring import evidently_report

    with ExitStack() as stack:
        for name in WRITERS:
            stack.enter_context(patch.object(evidently_report, name, _seldom(getattr(evidently_report, name))))
        yield


def _seldom(write: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(write)
    def written(page: Path, *rest: Any, **named: Any) -> Any:
        return write(page, *rest, **named) if date.fromisoformat(page.parent.name).weekday() == 0 else page

    return written
