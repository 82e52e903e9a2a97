"""Texts, and texts whose tokens are shaded by their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import as_array
from ihvp.errors import InvalidOption
from ihvp.report.markup import escaped, signed

_SHADES = 8  # of each sign; the style sheet has a class for each


class Texts:
    """Texts, each whole or as its tokens; the shades of a query's examples are on one scale."""

    below = True

    def __init__(self, inputs: Any, rows: Sequence[int], queries: Any, token_scores: Any) -> None:
        self._inputs = list(inputs)
        self._queries = [] if queries is None else list(queries)
        for option, texts, shown in (
            ("inputs", self._inputs, rows),
            ("queries", self._queries, range(len(self._queries))),
        ):
            for i in shown:
                if not is_text(texts[i]):
                    raise InvalidOption(f"{option}[{i}]", texts[i], "a text, or a list of tokens")
        self._scores: Callable[[int, int], Any] | None = None
        if callable(token_scores):
            self._scores = token_scores
        elif token_scores is not None:
            self._scores = lambda query, row: token_scores[row]
            if len(token_scores) != len(self._inputs):
                raise InvalidOption(
                    "token_scores", token_scores, f"one list for each of {len(self._inputs):,} texts"
                )

    def examples(self, query: int, rows: Sequence[int], names: Sequence[str]) -> list[str]:
        if self._scores is None:
            return [_text(self._inputs[row], name) for row, name in zip(rows, names, strict=True)]
        scores = [self._of_tokens(self._scores(query, row), row) for row in rows]
        most = max((float(np.abs(values).max(initial=0)) for values in scores), default=0.0) or 1.0
        return [
            _text(self._inputs[row], name, values, most)
            for row, name, values in zip(rows, names, scores, strict=True)
        ]

    def query(self, query: int, name: str) -> str:
        return _text(self._queries[query], name)

    def _of_tokens(self, values: Any, row: int) -> NDArray[Any]:
        tokens, option = self._inputs[row], f"token_scores of example {row}"
        scores = as_array(option, values)
        if isinstance(tokens, str) or scores.shape != (len(tokens),) or not np.isfinite(scores).all():
            raise InvalidOption(
                option,
                values,
                "inputs of lists of tokens"
                if isinstance(tokens, str)
                else f"{len(tokens)} finite numbers, one for each token",
            )
        return scores


def is_text(value: Any) -> bool:
    """Whether this is a text, or a list of tokens."""
    return isinstance(value, str) or (
        isinstance(value, list | tuple) and all(isinstance(token, str) for token in value)
    )


def _text(value: Any, name: str, scores: NDArray[Any] | None = None, most: float = 1.0) -> str:
    if isinstance(value, str):
        inner = escaped(value)
    elif scores is None:
        inner = "\n".join(f"<span class=token>{escaped(token)}</span>" for token in value)
    else:
        inner = "\n".join(map(_shaded, value, scores.tolist(), (scores / most).tolist()))
    kind = "whole" if isinstance(value, str) else "tokens"
    # The keyboard reaches each text, to scroll it and to walk along its tokens.
    return (
        f'<div class="text {kind}" dir="auto" tabindex="0" role="group" aria-label="{escaped(name)}">'
        f"{inner}</div>"
    )


def _shaded(token: str, score: float, share: float) -> str:
    shade = round(_SHADES * abs(share))
    kind = f" {'plus' if share > 0 else 'minus'} shade{shade}" if shade else ""
    return (
        f'<span class="token{kind}" tabindex="-1">{escaped(token)}'
        f'<span class="number"> {signed(score)}</span></span>'
    )
