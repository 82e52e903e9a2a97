"""How sure a fitted model is: its parameters, functions of them, and predictions."""

from ihvp.uncertainty.calibration import Calibration, Coverage, calibration, coverage
from ihvp.uncertainty.covariance import Covariance, covariance
from ihvp.uncertainty.evidence import Evidence
from ihvp.uncertainty.laplace import Laplace
from ihvp.uncertainty.predictive import Predictive, predictive_variance
from ihvp.uncertainty.standard_errors import Interval, confidence_intervals, standard_errors

__all__ = [
    "Calibration",
    "Covariance",
    "Coverage",
    "Evidence",
    "Interval",
    "Laplace",
    "Predictive",
    "calibration",
    "confidence_intervals",
    "covariance",
    "coverage",
    "predictive_variance",
    "standard_errors",
]
