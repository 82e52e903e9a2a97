"""Products with curvature matrices and their inverses, for a loss written in any framework."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ihvp import errors
from ihvp._registry import BackendInfo, backends, use
from ihvp.blockwise import BlockDiagonal
from ihvp.eigen import eigsh
from ihvp.errors import IhvpError
from ihvp.estimators import Estimate, SpectralDensity, diagonal, spectral_density, suggest_damping, trace
from ihvp.influence import Influence, InverseProducts, leave_one_out
from ihvp.kronecker import EKFAC, KFAC, Fisher
from ihvp.objective import Objective
from ihvp.operators import OPG, Dense, Eigenpairs, FullRank, GaussNewton, Hessian, LinearOperator, LowRank
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

if TYPE_CHECKING:
    from ihvp import evaluate as evaluate

__version__ = "0.1.0"

__all__ = [
    "CG",
    "EKFAC",
    "KFAC",
    "MINRES",
    "OPG",
    "Auto",
    "BackendInfo",
    "BlockDiagonal",
    "ClosedForm",
    "Dense",
    "Direct",
    "Eigenpairs",
    "Estimate",
    "Fisher",
    "FullRank",
    "GaussNewton",
    "Hessian",
    "IhvpError",
    "Influence",
    "InverseProducts",
    "LiSSA",
    "LinearOperator",
    "LowRank",
    "Nystrom",
    "Objective",
    "Solution",
    "Solver",
    "SpectralDensity",
    "backends",
    "diagonal",
    "eigsh",
    "errors",
    "inverse",
    "leave_one_out",
    "solve",
    "spectral_density",
    "suggest_damping",
    "trace",
    "use",
]


def __getattr__(name: str) -> Any:
    # Above all the rest, and loaded only where it is asked for.
    if name == "evaluate":
        return import_module("ihvp.evaluate")
    raise AttributeError(f"module 'ihvp' has no attribute {name!r}")
