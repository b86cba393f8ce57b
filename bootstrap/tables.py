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


SHORT_ID = 8
"""Characters at the end of a peer id that tell it from others; all begin alike."""


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], *, ids: Sequence[str] = ()) -> None:
    """Print a table. What stands in the cells may come from strangers. On a terminal the columns `ids` keep only their ends."""
    clean = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [list(columns), *clean]:
            print("\t".join(row))
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in clean:
        table.add_row(*(Text(_end(cell) if name in ids else cell) for name, cell in zip(columns, row, strict=True)))
    Console().print(table)


def _end(peer_id: str) -> str:
    return peer_id if len(peer_id) <= SHORT_ID else "…" + peer_id[-SHORT_ID:]
