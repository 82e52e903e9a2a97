"""Eigenvalues of curvature matrices."""

from ihvp.eigen.eigsh import eigsh

__all__ = ["eigsh"]
