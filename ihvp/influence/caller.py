"""Where a warning points to."""

from __future__ import annotations

import sys


def level_outside() -> int:
    """The ``stacklevel`` of the line outside this package that led here."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "ihvp":
        frame, level = frame.f_back, level + 1
    return level
