"""Curvature matrices as linear operators."""

from ihvp.operators.base import LinearOperator, Scaled, Shifted, Sum
from ihvp.operators.curvature import CurvatureOperator
from ihvp.operators.dense import Dense
from ihvp.operators.hessian import Hessian

__all__ = ["CurvatureOperator", "Dense", "Hessian", "LinearOperator", "Scaled", "Shifted", "Sum"]
