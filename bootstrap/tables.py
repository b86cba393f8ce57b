"""Tables on stdout: drawn on a terminal, tab separated in a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesh.logs import printable

if TYPE_CHECKING:
    from collections.abc import Sequence


def show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. What stands in the cells may come from strangers."""
    clean = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [list(columns), *clean]:
            print("\t".join(row))
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in clean:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
