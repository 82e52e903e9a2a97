"""The page: its text stands in ``evaluation.md`` here, and its numbers come from the folders of the tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import where
from tests.evaluation.methods import Method
from tests.evaluation.tasks import TASKS
from tests.evaluation.worker import METHODS, told

_TEMPLATE = Path(__file__).parent / "evaluation.md"
_PACKAGES = ("torch", "kronfluence", "traker", "dattri", "pyDVL", "captum")
_HIGH, _LOW = ("lds", "loo", "brittleness", "auc"), ("seconds", "memory")

Row = tuple[Method, dict[str, Any]]


def write(page: Path, build: Path) -> None:
    """Fill the template."""
    parts = {
        "WHERE": where(_PACKAGES),
        "MISSING": missing(build),
        "TABLES": tables(build),
        "BAR": bar(build),
    }
    text = _TEMPLATE.read_text()
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part.strip())
    page.write_text(text)


def missing(build: Path) -> str:
    """Which tasks have no table."""
    titles = [task.title for name, task in TASKS.items() if not _is_measured(build / name)]
    return f"Not measured yet: {'; '.join(titles)}." if titles else ""


def _is_measured(folder: Path) -> bool:
    return (folder / "bar.json").exists()


def rows(folder: Path) -> list[Row]:
    """What is known about each method, in the order of the table."""
    return [(method, told(folder, slug)) for slug, method in METHODS.items()]


def tables(build: Path) -> str:
    """A section for each task."""
    sections = []
    for name, task in TASKS.items():
        if not _is_measured(build / name):
            continue
        found = rows(build / name)
        random = next((about["random"][0] for _, about in found if "random" in about), float("nan"))
        sections.append(
            f"## {task.title}\n\n{task.training:,} training examples, {task.subsets} halves"
            f"{f', each trained on {task.seeds} times' if task.seeds > 1 else ''}. Without "
            f"as many examples at random the loss rises by {_signed(random)}.\n\n"
            f'<div class="wide" markdown>\n\n{table(found)}\n</div>\n'
        )
    return "\n".join(sections)


def table(found: Sequence[Row]) -> str:
    """Markdown; the best of each column is bold."""
    lines = [
        ["method", "λ", "LDS", "leave one out", "rise without the best", "AUC", "s", "MiB"],
        ["---"] * 8,
    ]
    best = {column: _best(found, column) for column in (*_HIGH, *_LOW)}
    for method, about in found:
        name = f"**ihvp** {method.name}" if method.library == "ihvp" else f"{method.library} {method.name}"
        if "failure" in about or not about:
            lines.append([name, "", about.get("failure", "not measured").replace("|", "\\|"), *[""] * 5])
            continue
        cells = [_bold(_cell(about, column), best[column]) for column in (*_HIGH, *_LOW)]
        damping = f"{about['damping']:.1g}" if method.tuned or about["damping"] else "–"
        lines.append([name, damping, *cells])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def bar(build: Path) -> str:
    """How far each index is from what it projects."""
    lines = [["task", "index", "at the index's damping", "each as chosen"], ["---"] * 4]
    for name, task in TASKS.items():
        if not _is_measured(build / name):
            continue
        for index, differences in json.loads((build / name / "bar.json").read_text()).items():
            told = [f"{value:+.3f} ± {error:.3f}".replace("-", "−") for value, error in differences]
            lines.append([task.title, index, *told])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _cell(about: dict[str, Any], column: str) -> str:
    value = about.get(column)
    if value is None:
        return "–"
    if column == "seconds":
        return f"{value:.2g}"
    if column == "memory":
        return f"{value / 2**20:.0f}"
    return f"{_signed(value[0])} ± {value[1]:.3f}"


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _best(found: Sequence[Row], column: str) -> str:
    """The cell of the best, without its standard error."""
    values = [about[column] for _, about in found if about.get(column) is not None and "failure" not in about]
    if not values:
        return ""
    best = min(values) if column in _LOW else max(values, key=lambda value: value[0])
    return _cell({column: best}, column).partition(" ")[0]


def _bold(cell: str, best: str) -> str:
    return f"**{cell}**" if best and cell.partition(" ")[0] == best else cell
