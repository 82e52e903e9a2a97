"""Derivatives through an optimum, and through a solve."""

from ihvp.implicit.differentiable_solve import differentiable_solve
from ihvp.implicit.hypergradient import hypergradient
from ihvp.implicit.inner_problem import Hypergradient, InnerProblem, NoImplicitPart

__all__ = ["Hypergradient", "InnerProblem", "NoImplicitPart", "differentiable_solve", "hypergradient"]
