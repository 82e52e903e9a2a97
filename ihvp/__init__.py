"""Products with curvature matrices and their inverses, for a loss written in any framework."""

from ihvp import errors
from ihvp._registry import BackendInfo, backends, use
from ihvp.errors import IhvpError
from ihvp.objective import Objective
from ihvp.operators import Dense, Hessian, LinearOperator
from ihvp.solvers import CG, MINRES, Direct, LiSSA, Solution, Solver, inverse, solve

__version__ = "0.1.0"

__all__ = [
    "CG",
    "MINRES",
    "BackendInfo",
    "Dense",
    "Direct",
    "Hessian",
    "IhvpError",
    "LiSSA",
    "LinearOperator",
    "Objective",
    "Solution",
    "Solver",
    "backends",
    "errors",
    "inverse",
    "solve",
    "use",
]
