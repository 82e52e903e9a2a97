"""What an experiment hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """A claim, what was measured, and whether the claim held."""

    claim: str  # the claim of the earlier notebook, in a sentence
    found: str  # what this run measured, with its numbers
    brief: str  # the same in a few words, for a table
    held: bool  # whether the claim held in this run
    files: tuple[Path, ...]  # what was written, the table (CSV) before the figure (PNG)
