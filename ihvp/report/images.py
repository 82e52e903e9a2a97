"""Images, as PNG in the page itself."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.errors import InvalidOption
from ihvp.plot.images import picture
from ihvp.report.markup import escaped

_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # of PNG, by the number of channels
_SMALL = 64  # images of no more pixels than these are enlarged, with sharp edges


class Images:
    """Those of the examples that appear, all on one scale of brightness.

    Bytes, and numbers from 0 to 1, are shown as they are. Others reach from black, the lowest of all, to
    white.
    """

    below = False

    def __init__(self, inputs: Any, rows: Sequence[int], queries: Any) -> None:
        self._examples = {row: _finite("inputs", inputs, row) for row in rows}
        asked = () if queries is None else range(len(queries))
        self._queries = [_finite("queries", queries, j) for j in asked]
        shown = [pixels for pixels in (*self._examples.values(), *self._queries) if pixels.dtype != np.uint8]
        low = min((float(pixels.min()) for pixels in shown), default=0.0)
        high = max((float(pixels.max()) for pixels in shown), default=1.0)
        self._low, self._high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)

    def examples(self, query: int, rows: Sequence[int], names: Sequence[str]) -> list[str]:
        return [self._image(self._examples[row], name) for row, name in zip(rows, names, strict=True)]

    def query(self, query: int, name: str) -> str:
        return self._image(self._queries[query], name)

    def _image(self, pixels: NDArray[Any], name: str) -> str:
        if pixels.dtype != np.uint8:
            scaled = (pixels.astype(np.float64) - self._low) / ((self._high - self._low) or 1.0)
            pixels = np.rint(255 * scaled).astype(np.uint8)
        height, width = pixels.shape[:2]
        small = ' class="small"' if max(height, width) <= _SMALL else ""
        data = base64.b64encode(png(pixels)).decode()
        return (
            f'<img{small} src="data:image/png;base64,{data}" width="{width}" height="{height}" '
            f'alt="{escaped(name)}">'
        )


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of ``(height, width)`` or ``(height, width, channels)`` bytes."""
    height, width = pixels.shape[:2]
    kind = _COLOUR_TYPES[pixels.shape[2] if pixels.ndim == 3 else 1]
    lines = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))  # each after the number of its filter, 0
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0),
        b"IDAT": zlib.compress(lines.tobytes(), 9),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def _finite(option: str, images: Any, index: int) -> NDArray[Any]:
    pixels = picture(images, index)
    if not (pixels.dtype.kind in "biuf" and pixels.size and np.isfinite(pixels).all()):
        raise InvalidOption(f"{option}[{index}]", images[index], "an image of finite real numbers")
    return pixels
