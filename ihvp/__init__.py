"""Products with curvature matrices and their inverses, for a loss written in any framework."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ihvp import errors
from ihvp._registry import BackendInfo, backends, use
from ihvp.attribution import TRAK, GradientCosine, GradientDot, LoGra, RelatIF, RepresenterPoints, TracIn
from ihvp.blockwise import BlockDiagonal
from ihvp.eigen import eigsh
from ihvp.errors import IhvpError
from ihvp.estimators import Estimate, SpectralDensity, diagonal, spectral_density, suggest_damping, trace
from ihvp.implicit import Hypergradient, InnerProblem, differentiable_solve, hypergradient
from ihvp.index import GradientIndex, build_index
from ihvp.influence import Influence, InverseProducts, leave_one_out
from ihvp.kronecker import EKFAC, KFAC, Fisher
from ihvp.objective import Objective
from ihvp.operators import OPG, Dense, Eigenpairs, FullRank, GaussNewton, Hessian, LinearOperator, LowRank
from ihvp.projection import Projection
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
from ihvp.uncertainty import (
    Laplace,
    calibration,
    confidence_intervals,
    covariance,
    coverage,
    predictive_variance,
    standard_errors,
)
from ihvp.version import __version__ as __version__

if TYPE_CHECKING:
    from ihvp import evaluate as evaluate

__all__ = [
    "CG",
    "EKFAC",
    "KFAC",
    "MINRES",
    "OPG",
    "TRAK",
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
    "GradientCosine",
    "GradientDot",
    "GradientIndex",
    "Hessian",
    "Hypergradient",
    "IhvpError",
    "Influence",
    "InnerProblem",
    "InverseProducts",
    "Laplace",
    "LiSSA",
    "LinearOperator",
    "LoGra",
    "LowRank",
    "Nystrom",
    "Objective",
    "Projection",
    "RelatIF",
    "RepresenterPoints",
    "Solution",
    "Solver",
    "SpectralDensity",
    "TracIn",
    "backends",
    "build_index",
    "calibration",
    "confidence_intervals",
    "covariance",
    "coverage",
    "diagonal",
    "differentiable_solve",
    "eigsh",
    "errors",
    "hypergradient",
    "inverse",
    "leave_one_out",
    "predictive_variance",
    "solve",
    "spectral_density",
    "standard_errors",
    "suggest_damping",
    "trace",
    "use",
]


def __getattr__(name: str) -> Any:
    # Above all the rest, and loaded only where it is asked for.
    if name in ("evaluate", "plot"):
        return import_module(f"ihvp.{name}")
    raise AttributeError(f"module 'ihvp' has no attribute {name!r}")
