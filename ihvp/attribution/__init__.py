"""Ready methods of attribution, which share their questions, their sign and their scale with influence."""

from ihvp.attribution.logra import LoGra
from ihvp.attribution.relatif import RelatIF
from ihvp.attribution.representer import RepresenterPoints
from ihvp.attribution.similarity import GradientCosine, GradientDot
from ihvp.attribution.tracin import TracIn
from ihvp.attribution.trak import TRAK

__all__ = ["TRAK", "GradientCosine", "GradientDot", "LoGra", "RelatIF", "RepresenterPoints", "TracIn"]
