"""One case in one framework, in this process: ``worker CASE FRAMEWORK DEVICE FILE``."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path


def main(case: str, framework: str, device: str, file: str) -> None:
    """Measure, and write the rows as JSON."""
    # Not by the list of all cases, which loads what each of them needs.
    module = importlib.import_module(f"tests.benchmarks.{case}")
    rows = module.CASE.frameworks[framework](device)
    labels = {"case": case, "framework": framework, "device": device}
    Path(file).write_text(json.dumps([dataclasses.asdict(row) | labels for row in rows]))


if __name__ == "__main__":
    main(*sys.argv[1:])
