"""Formulas become MathML when the site is built: no script or font from elsewhere is needed to read them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content: str, /, *, page: Any, **_: Any) -> str:
    """The page with the formulas that arithmatex has marked."""

    def mathml(found: re.Match[str], display: str) -> str:
        formula = html.unescape(found[1]).strip()
        try:
            made = convert(formula, display=display)
        except Exception as error:
            raise PluginError(f"{page.file.src_path}: cannot typeset {formula!r}: {error!r}") from error
        if "<mi>&</mi>" in made or "<mi>\\" in made:
            raise PluginError(f"{page.file.src_path}: a command in {formula!r} is unknown to latex2mathml")
        return made

    content = _INLINE.sub(lambda found: mathml(found, "inline"), content)
    return _DISPLAY.sub(lambda found: mathml(found, "block"), content)
