"""Solvers for systems with a curvature matrix."""

from ihvp.solvers.base import Solution, Solver
from ihvp.solvers.cg import CG
from ihvp.solvers.solve import Inverse, inverse, solve

__all__ = ["CG", "Inverse", "Solution", "Solver", "inverse", "solve"]
