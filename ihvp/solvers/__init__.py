"""Solvers for systems with a curvature matrix."""

from ihvp.solution import Solution
from ihvp.solvers.auto import Auto
from ihvp.solvers.base import Solver
from ihvp.solvers.cg import CG
from ihvp.solvers.closed_form import ClosedForm
from ihvp.solvers.direct import Direct
from ihvp.solvers.lissa import LiSSA
from ihvp.solvers.minres import MINRES
from ihvp.solvers.nystrom import Nystrom
from ihvp.solvers.solve import Inverse, inverse, solve

__all__ = [
    "CG",
    "MINRES",
    "Auto",
    "ClosedForm",
    "Direct",
    "Inverse",
    "LiSSA",
    "Nystrom",
    "Solution",
    "Solver",
    "inverse",
    "solve",
]
