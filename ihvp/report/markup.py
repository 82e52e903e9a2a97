"""What users wrote, as text of an HTML page."""

from __future__ import annotations

import html
from typing import Any

# Characters that no page may hold, or that its reader would change, as the pictures that stand for them.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421}


def escaped(value: Any) -> str:
    r"""The text of a value, which stays text in an element and in an attribute.

    >>> escaped("</script> & \0'")
    '&lt;/script&gt; &amp; ␀&#x27;'
    """
    text = str(value).replace("\r\n", "\n").translate(_PICTURES)
    return html.escape(text.encode("utf-8", "replace").decode())  # half a pair of surrogates is no text


def signed(value: float) -> str:
    """A score to three digits, with its sign.

    >>> signed(-0.0012)
    '−0.00120'
    """
    return f"{value:+#.3g}".rstrip(".").replace("-", "−")


def attribute(name: str, value: Any) -> str:
    """A data attribute of an element; nothing for None.

    >>> attribute("label", "a cat")
    ' data-label="a cat"'
    """
    return "" if value is None else f' data-{name}="{escaped(value)}"'
