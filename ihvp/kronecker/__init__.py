"""Curvature in Kronecker factors, layer by layer."""

from ihvp.kronecker.fisher import Fisher
from ihvp.kronecker.structured import EKFAC, KFAC, BlockStructured

__all__ = ["EKFAC", "KFAC", "BlockStructured", "Fisher"]
