"""Arrays for results, which are refused before the work where they do not fit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.memory import require_memory


def allocate(shape: tuple[int, ...], dtype: np.dtype[Any], what: str, advice: str) -> NDArray[Any]:
    """An array of the host, not yet filled: zeros, which take no memory before they are written to.

    Where it does not fit, ``what`` and ``advice`` make the text of :class:`~ihvp.errors.TooLarge`.
    """
    sizes = " × ".join(f"{size:,}" for size in shape)
    require_memory(None, math.prod(shape), dtype.itemsize, f"{what}, {sizes},", advice)
    return np.zeros(shape, dtype)
