"""What an experiment hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """A claim, what was measured, and whether the claim held.

    Attributes
    ----------
    claim : str
        The claim of the earlier notebook, in a sentence.
    found : str
        What this run measured, with its numbers.
    brief : str
        The same in a few words, for a table.
    held : bool
        Whether the claim held in this run.
    files : tuple of Path
        What was written, the table (CSV) before the figure (PNG).
    """

    claim: str
    found: str
    brief: str
    held: bool
    files: tuple[Path, ...]
