"""How sure parameters are, and functions of them: what the inverse of their curvature says."""

from ihvp.uncertainty.covariance import Covariance, covariance
from ihvp.uncertainty.standard_errors import Interval, confidence_intervals, standard_errors

__all__ = ["Covariance", "Interval", "confidence_intervals", "covariance", "standard_errors"]
