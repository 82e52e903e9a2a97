"""Curvature matrices as linear operators."""

from ihvp.eigenpairs import Eigenpairs
from ihvp.operators.base import LinearOperator, Scaled, Shifted, Sum
from ihvp.operators.curvature import CurvatureOperator
from ihvp.operators.dense import Dense, ScalarMatrix
from ihvp.operators.gauss_newton import GaussNewton
from ihvp.operators.hessian import Hessian
from ihvp.operators.low_rank import FullRank, LowRank
from ihvp.operators.opg import OPG
from ihvp.operators.product import Product

__all__ = [
    "OPG",
    "CurvatureOperator",
    "Dense",
    "Eigenpairs",
    "FullRank",
    "GaussNewton",
    "Hessian",
    "LinearOperator",
    "LowRank",
    "Product",
    "ScalarMatrix",
    "Scaled",
    "Shifted",
    "Sum",
]
