"""The backend "numdiff": curvature products from finite differences of any gradient.

Public here: :class:`InPlaceWeights`, for frameworks whose weights can only be set in place.
"""

from __future__ import annotations

from ihvp_numdiff._weights import InPlaceWeights

__all__ = ["InPlaceWeights"]
