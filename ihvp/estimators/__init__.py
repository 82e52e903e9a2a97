"""What random products tell of a matrix: trace, diagonal, spectrum, and the damping that it needs."""

from ihvp.estimators.damping import suggest_damping
from ihvp.estimators.diagonal import diagonal
from ihvp.estimators.probes import Estimate
from ihvp.estimators.spectral_density import SpectralDensity, spectral_density
from ihvp.estimators.trace import trace

__all__ = ["Estimate", "SpectralDensity", "diagonal", "spectral_density", "suggest_damping", "trace"]
