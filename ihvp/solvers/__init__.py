"""Solvers for systems with a curvature matrix."""

from ihvp.solvers.base import Solution, Solver
from ihvp.solvers.cg import CG
from ihvp.solvers.direct import Direct
from ihvp.solvers.lissa import LiSSA
from ihvp.solvers.minres import MINRES
from ihvp.solvers.solve import Inverse, inverse, solve

__all__ = ["CG", "MINRES", "Direct", "Inverse", "LiSSA", "Solution", "Solver", "inverse", "solve"]
