"""Indices of projected gradients: attribution where there are many examples, or many questions."""

from ihvp.index.build import Forecast, build_index, forecast
from ihvp.index.gradient_index import GradientIndex

__all__ = ["Forecast", "GradientIndex", "build_index", "forecast"]
