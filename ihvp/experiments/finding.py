"""What an experiment hands back and writes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finding:
    """A claim, what was measured, and whether the claim held."""

    claim: str  # the claim of the earlier notebook, in a sentence
    found: str  # what this run measured, with its numbers
    brief: str  # the same in a few words, for a table
    held: bool  # whether the claim held in this run
    files: tuple[Path, ...]  # what was written, the table (CSV) before the figure (PNG)


def write(
    out: Path, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]], figure: Any
) -> tuple[Path, Path]:
    """Write ``NAME.csv``, floats with all their digits, and ``NAME.png`` into the folder ``out``."""
    table, picture = out / f"{name}.csv", out / f"{name}.png"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    save(figure, picture)
    return table, picture


def save(figure: Any, path: Path) -> None:
    """Write ``figure`` as PNG, the same bytes for the same picture."""
    figure.savefig(path, metadata={"Software": None})
