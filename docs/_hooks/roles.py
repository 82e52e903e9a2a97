"""Docstrings hold reStructuredText's roles; the site is Markdown. A griffe extension that translates them."""

from __future__ import annotations

import re
from typing import Any

import griffe

_DISPLAY = re.compile(r"^( *)\.\. math::[ \t]*(.*(?:\n(?:\1 +\S.*)?)*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")
_REFERENCE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Formulas become those of arithmatex, references to objects those of mkdocs-autorefs."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    r"""The same docstring with Markdown in the place of roles and directives.

    >>> to_markdown("As :class:`~ihvp.CG` with :math:`\\lambda`.")
    'As [`CG`][ihvp.CG] with \\(\\lambda\\).'
    >>> print(to_markdown("The sum\n\n.. math:: a\n    + b\n\nof both."))
    The sum
    <BLANKLINE>
    $$
    a + b
    $$
    <BLANKLINE>
    of both.
    """
    text = _DISPLAY.sub(_display, text)
    text = _INLINE.sub(lambda found: rf"\({_one_line(found[1])}\)", text)
    return _REFERENCE.sub(_reference, text)


def _display(found: re.Match[str]) -> str:
    indent, formula = found[1], found[2]
    blank_after = formula[len(formula.rstrip()) :]
    return f"{indent}$$\n{indent}{_one_line(formula)}\n{indent}$${blank_after}"


def _reference(found: re.Match[str]) -> str:
    short, path = found[1], found[2]
    return f"[`{path.rpartition('.')[2] if short else path}`][{path}]"


def _one_line(formula: str) -> str:
    return " ".join(formula.split())
