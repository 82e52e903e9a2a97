"""The table and the figure."""

from __future__ import annotations

import datetime
import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.benchmarks.figure import draw
from tests.benchmarks.rows import Row

_PACKAGES = (
    "torch",
    "jax",
    "tensorflow",
    "numpy",
    "scipy",
    "curvlinops-for-pytorch",
    "pyDVL",
    "dattri",
    "PyHessian",
    "lineax",
    "matfree",
)

_TEXT = """# Performance

Written by `make bench`, which sets up the environment and measures again; `make bench ONLY=solves` prints one
part. {where}.

- Both sides of a row ran in turns in one process, in float32, with the same data, damping and device; times
  are medians, and the number is the median of the ratios within a round.
- What a side prepares for an operator counts on both sides; what a framework compiles does not.
- Peers have the settings that their documentation recommends, and the loosest tolerance that brings every
  column to the residual asked for. The residuals (ours | theirs) come from one float64 oracle in numpy: of a
  solve `‖v − (H + λI) x‖ / ‖v‖`, of eigenpairs `‖H q − λ q‖ / λ₁`, of products their relative
  errors. Of per-example gradients it is the difference between the two sides.
- Two peers are too slow for turns: PyHessian ran once, and pyDVL's LiSSA for 50 of the 1,000 steps.
- Rows without a bar are there to compare. [Where the time goes](time.md) explains the bars that are missed.

![Other libraries' times in units of ours](rivals.png)

{table}
{missed}"""


def write(folder: Path, rows: Sequence[Row], failures: dict[str, str]) -> None:
    """Replace the page and its figure."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [f"- {label}: {error.strip().splitlines()[-1]}" for label, error in failures.items()]
    missed = "\n".join(["\n## Not measured\n", *missing, ""]) if missing else ""
    (folder / "index.md").write_text(_TEXT.format(where=_where(), table=table(rows), missed=missed))
    draw(rows, folder / "rivals.png")


def table(rows: Sequence[Row]) -> str:
    """Markdown, with columns for the GPU where there are rows of both."""
    devices = {row.device for row in rows}
    on_gpu = {_key(row): row for row in rows if row.device != "cpu"} if len(devices) > 1 else {}
    head = ["", "", "ours", "beside", "number", "bar", "", "residuals"]
    if on_gpu:
        head += ["GPU: ours", "beside", "number", ""]
    lines = [head, ["---"] * len(head)]
    case = ""
    for row in rows:
        if on_gpu and row.device != "cpu":
            continue
        if row.case != case:
            case = row.case
            lines.append([f"**{case}**", *[""] * (len(head) - 1)])
        cells = [row.what, row.framework, *_measured(row)[:2], _number(row), _bar(row), _verdict(row)]
        cells.append(_residuals(row))
        if on_gpu:
            other = on_gpu.get(_key(row))
            cells += [*_measured(other), _verdict(other)] if other else [""] * 4
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _key(row: Row) -> tuple[str, str, str, str]:
    return row.case, row.framework, row.what, row.peer


def _measured(row: Row) -> list[str]:
    return [row.ours, f"{row.peer}: {row.beside}", _number(row)]


def _number(row: Row) -> str:
    return f"{row.value:.3f}" if abs(row.value) < 1 else f"{row.value:.2f}"


def _bar(row: Row) -> str:
    if row.high is None:
        return ""
    if row.low is not None and row.low > 0:
        return f"{row.low:g} to {row.high:g}"
    return f"≤ {row.high:.3g}"


def _verdict(row: Row) -> str:
    return "" if not row.has_bar else "met" if row.met else "**missed**"


def _residuals(row: Row) -> str:
    if row.residual is None:
        return ""
    ours = f"{row.residual:.1e}"
    if row.peer_residual is None:
        return ours
    return f"{ours} \\| {'–' if math.isnan(row.peer_residual) else f'{row.peer_residual:.1e}'}"


def _where() -> str:
    """The machine, and the versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    today = datetime.datetime.now(tz=datetime.UTC).date()
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    return (
        f"Measured on {today} on {cores} core{'s' * (cores != 1)} ({_processor()}) with Python "
        f"{platform.python_version()}, {versions}"
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
