"""A query, and the lists of the examples that helped and harmed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ihvp.report.markup import attribute, escaped, signed

# The order of a list's scores as it stands at first.
_HEADINGS = {
    "helped": ("Helped most", "Without it the loss would rise.", "descending"),
    "harmed": ("Harmed most", "Without it the loss would fall.", "ascending"),
}


@dataclass(frozen=True)
class Example:
    """A training example as it is shown beside a query."""

    number: int
    score: float
    label: Any
    shown: str  # its input, as HTML


def section(
    query: int, label: Any, shown: str, lists: Mapping[str, Sequence[Example]], *, labelled: bool, below: bool
) -> str:
    """The HTML of a query: its input, and lists of examples, whose inputs may stand below their numbers."""
    badge = "" if label is None else f' <span class="badge">label <bdi>{escaped(label)}</bdi></span>'
    most = max((abs(each.score) for found in lists.values() for each in found), default=1.0)
    headers = [("score", "Score"), ("example", "Example"), *([("label", "Label")] if labelled else [])]
    tables = []
    for kind, found in lists.items():
        heading, meaning, order = _HEADINGS[kind]
        columns = "".join(
            f'<th scope="col" data-key="{key}"{f" aria-sort={order}" if key == "score" else ""}>'
            f'<button type="button">{name}</button></th>'
            for key, name in headers
        )
        bodies = "\n".join(_body(rank, each, most, labelled, below) for rank, each in enumerate(found, 1))
        tables.append(
            f'<div class="list"><table class="{kind}"><caption><strong>{heading}</strong> {meaning}</caption>'
            f'<thead><tr><th scope="col"><span class="unseen">Rank</span></th>'
            f"{'' if below else '<th scope=col>Image</th>'}{columns}</tr></thead>\n{bodies}</table>"
            f'<p class="none"{" hidden" if found else ""}>No example.</p></div>'
        )
    return (
        f'<section id="query-{query}" aria-labelledby="name-{query}"{attribute("label", label)}>'
        f'<header><h2 id="name-{query}">Query {query}{badge}</h2>{shown}</header>\n'
        f'<div class="lists">{"".join(tables)}</div></section>'
    )


def _body(rank: int, example: Example, most: float, labelled: bool, below: bool) -> str:
    label = f'<td class="label"><bdi>{escaped(example.label)}</bdi></td>' if labelled else ""
    picture = "" if below else f'<td class="picture">{example.shown}</td>'
    bar = (
        '<svg viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{100 * abs(example.score) / most:.1f}" height="4"/></svg>'
    )
    return (
        f'<tbody data-score="{example.score!r}" data-example="{example.number}"'
        f"{attribute('label', example.label)}><tr>"
        f'<td class="rank">{rank}</td>{picture}<td class="score">{signed(example.score)}{bar}</td>'
        f'<th scope="row">{example.number}</th>{label}</tr>'
        + (f'<tr><td colspan="{3 + labelled}">{example.shown}</td></tr>' if below else "")
        + "</tbody>"
    )
