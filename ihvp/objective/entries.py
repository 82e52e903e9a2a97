"""Some entries of a flat vector, as a vector of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import array_api_compat

from ihvp import algebra
from ihvp.backend import Vector


class Entries:
    """Those at some places of a vector of ``size`` numbers, in their order.

    Examples
    --------
    >>> import numpy as np
    >>> entries = Entries([slice(3, 4), slice(0, 2)], 4)
    >>> entries.of(np.array([1.0, 2.0, 3.0, 4.0]))
    array([1., 2., 4.])
    >>> entries.within(np.array([1.0, 2.0, 4.0]))
    array([1., 2., 0., 4.])
    """

    def __init__(self, places: Iterable[slice], size: int) -> None:
        self.count, self._size = 0, size
        self.places: list[tuple[slice, slice]] = []  # in the whole, and among these entries
        for place in sorted(places, key=lambda place: place.start):
            first, self.count = self.count, self.count + place.stop - place.start
            self.places.append((place, slice(first, self.count)))

    def of(self, whole: Vector, axis: int = 0) -> Vector:
        """These entries of a vector, or of each vector along an axis."""
        index: tuple[Any, ...] = (slice(None),) * axis
        parts = [whole[(*index, place)] for place, _ in self.places]
        return array_api_compat.array_namespace(whole).concat(parts, axis=axis)

    def within(self, part: Vector, others: Vector = None) -> Vector:
        """The whole vector, or block, with zeros or the entries of ``others`` in the other places."""
        xp, device = array_api_compat.array_namespace(part), algebra.device(part)
        found, end = [], 0
        for place, here in [*self.places, (slice(self._size, self._size), slice(0, 0))]:
            if others is None:
                shape = (place.start - end, *part.shape[1:])
                found.append(xp.zeros(shape, dtype=part.dtype, device=device))
            else:
                found.append(others[end : place.start])
            found.append(part[here])
            end = place.stop
        return xp.concat(found, axis=0)
