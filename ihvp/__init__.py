"""Products with curvature matrices and their inverses, for a loss written in any framework."""

from ihvp import errors
from ihvp._registry import BackendInfo, backends, use
from ihvp.eigen import eigsh
from ihvp.errors import IhvpError
from ihvp.objective import Objective
from ihvp.operators import (
    OPG,
    Dense,
    Eigenpairs,
    FullRank,
    GaussNewton,
    Hessian,
    LinearOperator,
    LowRank,
)
from ihvp.solvers import (
    CG,
    MINRES,
    Auto,
    ClosedForm,
    Direct,
    LiSSA,
    Nystrom,
    Solution,
    Solver,
    inverse,
    solve,
)

__version__ = "0.1.0"

__all__ = [
    "CG",
    "MINRES",
    "OPG",
    "Auto",
    "BackendInfo",
    "ClosedForm",
    "Dense",
    "Direct",
    "Eigenpairs",
    "FullRank",
    "GaussNewton",
    "Hessian",
    "IhvpError",
    "LiSSA",
    "LinearOperator",
    "LowRank",
    "Nystrom",
    "Objective",
    "Solution",
    "Solver",
    "backends",
    "eigsh",
    "errors",
    "inverse",
    "solve",
    "use",
]
