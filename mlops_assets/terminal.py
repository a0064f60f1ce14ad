"""What the commands print: folded to the terminal, and whole lines into a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console(*, markup: bool = True) -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, markup=markup)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Cells are printed as they are: a reason in [brackets] is no markup."""
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console(markup=False).print(table)
