"""The page: queries, each with the training examples that helped and harmed it most."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ihvp.algebra import as_numpy
from ihvp.arguments import check_path
from ihvp.errors import InvalidOption
from ihvp.report.form import count, form_of
from ihvp.report.markup import attribute, escaped
from ihvp.report.section import Example, section

if TYPE_CHECKING:
    from ihvp.influence.top_k import TopK

_MAGNITUDES = (
    "<p>Listed are the examples whose scores are the largest in magnitude: one of two lists may be short.</p>"
)
_SHADES = (
    '<p>Tokens are shaded by their scores: <span class="token plus shade8">helps</span> '
    '<span class="token minus shade8">harms</span>, on one scale for all examples of a query. Point at a '
    "token for its number, or focus a text and press the arrow keys.</p>"
)


def page(
    rankings: Sequence[TopK],
    inputs: Any,
    *,
    queries: Any = None,
    labels: Any = None,
    query_labels: Any = None,
    kind: str | None = None,
    feature_names: Any = None,
    token_scores: Any = None,
    title: str = "Influence of training examples",
    numbers: NDArray[np.int64] | None = None,
) -> str:
    """One HTML file of rankings of the same test points; see :meth:`ihvp.influence.TopK.to_html`.

    ``numbers`` are those of the training examples that ``inputs`` and ``labels`` hold, where that is not all.
    """
    tests = len(rankings[0].indices)
    if len(rankings[-1].indices) != tests:
        raise InvalidOption("other", rankings[-1], f"a ranking of the same {tests:,} test points")
    lists = [_lists(rankings, j) for j in range(tests)]
    appearing = sorted({number for each in lists for found in each.values() for number, _ in found})
    total = count("inputs", inputs)
    if numbers is None and appearing and appearing[-1] >= total:
        raise InvalidOption(
            "inputs",
            inputs,
            "all training inputs, in the order of the training data: a score belongs to example "
            f"{appearing[-1]:,}, and there are {total:,} inputs",
        )
    for option, values, expected in (
        ("inputs", inputs, total if numbers is None else len(numbers)),
        ("labels", labels, total),
        ("queries", queries, tests),
        ("query_labels", query_labels, tests),
    ):
        if values is not None and (found := count(option, values)) != expected:
            raise InvalidOption(option, values, f"{expected:,} of them, and there are {found:,}")
    places = appearing if numbers is None else np.searchsorted(numbers, appearing).tolist()
    row_of = dict(zip(appearing, places, strict=True))
    form = form_of(inputs, places, queries, kind, feature_names, token_scores)
    known, asked = _listed(labels, total), _listed(query_labels, tests)
    sections = []
    for j, ranked in enumerate(lists):
        rows = [row_of[number] for found in ranked.values() for number, _ in found]
        names = [
            f"Training example {number}" + ("" if labels is None else f", label {known[row_of[number]]}")
            for found in ranked.values()
            for number, _ in found
        ]
        shown = iter(form.examples(j, rows, names))
        examples = {
            heading: [Example(number, score, known[row_of[number]], next(shown)) for number, score in found]
            for heading, found in ranked.items()
        }
        query = "" if queries is None else form.query(j, f"Input of query {j}")
        sections.append(section(j, asked[j], query, examples, labelled=labels is not None, below=form.below))
    style, script = (_resource(f"page.{suffix}") for suffix in ("css", "js"))
    return Template(_resource("page.html")).substitute(
        title=escaped(title),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        residual=f"{max(each.residual for each in rankings):.1e}",
        magnitudes=_MAGNITUDES if any(each.which == "both" for each in rankings) else "",
        shades="" if token_scores is None else _SHADES,
        links=_links(asked) if tests > 1 else "",
        sections="\n".join(sections),
    )


def check_place(option: str, path: Any) -> Path:
    """The path of a file in a folder that is there."""
    check_path(option, path)
    place = Path(path)
    if place.is_dir() or not place.parent.is_dir():
        raise InvalidOption(option, str(path), "the path of a file in a folder that is there")
    return place


def _lists(rankings: Sequence[TopK], test: int) -> dict[str, list[tuple[int, float]]]:
    """Numbers and scores of those that helped and of those that harmed, the most first.

    A ranking of the helpful may end with harmful ones, but these are not the most harmful.
    """
    lists: dict[str, dict[int, float]] = {}
    for each in rankings:
        found = list(zip(each.indices[test].tolist(), each.scores[test].tolist(), strict=True))
        for sign, heading, which in ((1, "helped", "helpful"), (-1, "harmed", "harmful")):
            if each.which in (which, "both"):
                lists.setdefault(heading, {}).update({i: score for i, score in found if sign * score > 0})
    return {
        heading: sorted(lists[heading].items(), key=lambda item: (-abs(item[1]), item[0]))
        for heading in ("helped", "harmed")
        if heading in lists
    }


def _listed(labels: Any, count: int) -> Sequence[Any]:
    if labels is None:
        return [None] * count
    found: Sequence[Any] = labels if isinstance(labels, list | tuple) else as_numpy(labels).tolist()
    return found


def _links(labels: Sequence[Any]) -> str:
    items = "\n".join(
        f'<li{attribute("label", label)}><a href="#query-{j}"><span class="unseen">Query </span>{j}'
        + ("" if label is None else f"<bdi>{escaped(label)}</bdi>")
        + "</a></li>"
        for j, label in enumerate(labels)
    )
    return f'<nav aria-label="Queries"><ul>{items}</ul></nav>'


def _resource(name: str) -> str:
    return files("ihvp.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
