"""How sure a fitted model is: the posterior of its parameters, and what follows for its predictions."""

from ihvp.uncertainty.calibration import Calibration, Coverage, calibration, coverage
from ihvp.uncertainty.evidence import Evidence
from ihvp.uncertainty.laplace import Laplace
from ihvp.uncertainty.predictive import Predictive, predictive_variance

__all__ = [
    "Calibration",
    "Coverage",
    "Evidence",
    "Laplace",
    "Predictive",
    "calibration",
    "coverage",
    "predictive_variance",
]
