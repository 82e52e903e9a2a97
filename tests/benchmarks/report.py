"""The table and the figure."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from tests.benchmarks.cases import CASES
from tests.benchmarks.figure import draw
from tests.benchmarks.rows import Part, Row

PACKAGES = (
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
    "kronfluence",
    "laplace-torch",
)

_PARTS = "measured.json"
_TEXT = """# Performance

{summary}

![Other libraries' times in units of ours](rivals.png)

{when}.

- Both sides of a row ran in turns in one process and, on the processor, in one thread, in float32, with the
  same data, damping and device; times are medians, and the number is the median of the ratios within a round.
- `torch` is the backend as it is by default: beside other solvers its warm-up counts, and the number is a
  ratio of means. `torch-eager` never compiles, `torch-compiled` always does, before the clock starts.
- What a side prepares for an operator counts on both sides; what a framework compiles does not elsewhere.
- Peers have the settings that their documentation recommends, and the loosest tolerance that brings every
  column to the residual asked for. The residuals (ours | theirs) come from one float64 oracle in numpy: of a
  solve `‖v − (H + λI) x‖ / ‖v‖`, of eigenpairs `‖H q − λ q‖ / λ₁`, of products their relative
  errors. Of per-example gradients it is the difference between the two sides.
- Some are too slow for turns: what takes over a second, and four times as long as the fastest, is timed once
  when it is warm, PyHessian and dattri's scores ran once, and pyDVL's LiSSA for 50 of the 1,000 steps. Where
  a peer did not finish within a limit, the number is the ratio to the limit.
- Rows without a bar are there to compare. [Where the time goes](time.md) explains the bars that are missed.

`make bench` takes about {minutes} minutes. It leaves out what changes rarely ({rare}), which
`make bench ALL=1` measures too, in {all_minutes} minutes. The command below a heading prints that part.

<div class="wide" markdown>

{table}
</div>
{missed}"""

# The cases of the summary, a line each.
_SUMMARISED = (
    "products",
    "blocks",
    "solves",
    "lissa",
    "eigenpairs",
    "per_example",
    "influence",
    "structured",
    "posteriors",
    "users",
)


def read(folder: Path) -> dict[str, Part]:
    """What the page was made of, by labels."""
    file = folder / _PARTS
    found = json.loads(file.read_text()) if file.exists() else {}
    return {
        label: Part(**{**part, "rows": [Row(**row) for row in part["rows"]]}) for label, part in found.items()
    }


def keep(folder: Path, parts: Mapping[str, Part]) -> None:
    """For the next page."""
    found = {label: dataclasses.asdict(part) for label, part in parts.items()}
    (folder / _PARTS).write_text(json.dumps(found, indent=1) + "\n")


def write(folder: Path, parts: Iterable[Part], failures: dict[str, str]) -> None:
    """Replace the page and its figure."""
    parts = sorted(parts, key=_place)
    missing = [f"- {label}: {error.strip().splitlines()[-1]}" for label, error in failures.items()]
    missed = "\n".join(["\n## Not measured\n", *missing, ""]) if missing else ""
    rows = [row for part in parts for row in part.rows]
    rare = dict.fromkeys(CASES[part.case].title for part in parts if not CASES[part.case].often)
    page = _TEXT.format(
        summary=summary(rows),
        when=parts[0].when,
        minutes=_minutes(part for part in parts if CASES[part.case].often),
        rare="; ".join(rare),
        all_minutes=_minutes(parts),
        table=tables(parts),
        missed=missed,
    )
    (folder / "index.md").write_text(page)
    draw(rows, folder / "rivals.png")


def _place(part: Part) -> tuple[int, int, str]:
    """In the order of the cases, and of their frameworks."""
    return list(CASES).index(part.case), list(CASES[part.case].frameworks).index(part.framework), part.device


def _minutes(parts: Iterable[Part]) -> int:
    return math.ceil(sum(part.took for part in parts) / 60)


def summary(rows: Sequence[Row]) -> str:
    """Ten lines: our time beside the fastest other library's, where we are not first, and the bars."""
    lines, slower = [], []
    for case in _SUMMARISED:
        found = [row for row in rows if row.case == case and row.rival and row.device == "cpu"]
        parts = []
        for framework in dict.fromkeys(row.framework for row in found):
            best = _fastest_peers([row for row in found if row.framework == framework])
            numbers = " to ".join(dict.fromkeys(f"{row.value:.2f}" for row in (best[0], best[-1])))
            parts.append(f"{framework} {numbers} ({' or '.join(dict.fromkeys(row.peer for row in best))})")
            if best[-1].value > 1:
                slower.append(f"{CASES[case].title} ({framework}, {best[-1].value:.2f})")
        if parts:
            lines.append(f"- {CASES[case].title}: {', '.join(parts)}.")
    barred = [row for row in rows if row.has_bar]
    return "\n".join(
        [
            "Our time as a part of the time of the fastest other library that gives the same answer:\n",
            *lines,
            f"\n**Where we are not first**: {'; '.join(slower) or 'nowhere in these lines'}.",
            f"**Bars**: {sum(row.met for row in barred)} of {len(barred)} are met.",
        ]
    )


def _fastest_peers(rows: Sequence[Row]) -> list[Row]:
    """The row of the fastest peer of each problem, best ratios first."""
    problems = {row.what: row for row in sorted(rows, key=lambda row: row.value)}
    return sorted(problems.values(), key=lambda row: row.value)


def tables(parts: Sequence[Part]) -> str:
    """Markdown: a heading with its command for each case, a table for each problem."""
    written = []
    for case, group in groupby(parts, key=lambda part: part.case):
        of_case = list(group)
        written.append(f"## {CASES[case].title}\n\n`make bench ONLY={case}`\n")
        if of_case[0].when != parts[0].when:
            written.append(f"{of_case[0].when}.\n")
        problems: dict[str, list[Row]] = {}
        for row in (row for part in of_case for row in part.rows):
            problems.setdefault(row.what, []).append(row)
        written += [_table(what, found) for what, found in problems.items()]
    return "\n".join(written)


def _table(what: str, rows: Sequence[Row]) -> str:
    accurate = any(row.residual is not None for row in rows)
    head = ["", "ours", "beside", "number", "bar"] + ["residuals"] * accurate
    lines = [head, ["---"] * len(head)]
    for row in rows:
        device = "" if row.device == "cpu" else " on the GPU"
        bar = f"{_bar(row)} {_verdict(row)}".strip()
        cells = [row.framework + device, row.ours, f"{row.peer}: {row.beside}", _number(row), bar]
        lines.append(cells + [_residuals(row)] * accurate)
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"**{what[0].upper() + what[1:]}**\n\n{table}\n"


def _number(row: Row) -> str:
    if math.isnan(row.value):
        return "–"
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
