"""In what form inputs are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ihvp.arguments import check_choice, shape_of
from ihvp.errors import InvalidOption
from ihvp.report.images import Images
from ihvp.report.rows import Rows, is_frame
from ihvp.report.texts import Texts, is_text

Form: TypeAlias = Images | Rows | Texts
"""What gives ``examples`` and ``query`` as HTML; where ``below``, an example takes a line of its own."""


def form_of(
    inputs: Any, rows: Sequence[int], queries: Any, kind: str | None, feature_names: Any, token_scores: Any
) -> Form:
    """The form of a kind, or of what the inputs look like, of those rows and of all queries."""
    if kind is not None:
        check_choice("kind", kind, ("image", "text", "table"))
    kind = kind or kind_of(inputs)
    for option, value, owner in (
        ("feature_names", feature_names, "table"),
        ("token_scores", token_scores, "text"),
    ):
        if value is not None and kind != owner:
            raise InvalidOption(option, value, f'None for inputs of the kind "{kind}"')
    if kind == "image":
        return Images(inputs, rows, queries)
    if kind == "text":
        return Texts(inputs, rows, queries, token_scores)
    return Rows(inputs, rows, queries, feature_names)


def kind_of(inputs: Any) -> str:
    """Whether inputs are images, texts or rows of a table.

    >>> kind_of(["a text", "another"]), kind_of(np.zeros((5, 8, 8))), kind_of({"age": [31, 42]})
    ('text', 'image', 'table')
    """
    if is_frame(inputs) or isinstance(inputs, Mapping):
        return "table"
    shape = shape_of(inputs)
    if (shape is None or len(shape) == 1) and all(map(is_text, inputs)):
        return "text"
    try:
        dimensions = len(np.shape(inputs) if shape is None else shape)
    except ValueError:  # lists of unequal lengths
        dimensions = 0
    if dimensions not in (2, 3, 4):
        raise InvalidOption(
            "inputs",
            inputs,
            "images (N, height, width), with channels before or after; a list of texts or of lists of "
            "tokens; or a DataFrame, a dict of columns or a matrix",
        )
    return "table" if dimensions == 2 else "image"


def count(option: str, values: Any) -> int:
    """The number of examples that inputs, or labels, are of."""
    try:
        columns = isinstance(values, Mapping) and not is_frame(values)
        return len(next(iter(values.values()), ())) if columns else len(values)
    except TypeError as error:
        raise InvalidOption(option, values, "one for each example, as a list, an array or a table") from error
