"""Influence functions: which training examples are behind a prediction (Koh and Liang, ICML 2017)."""

from ihvp.influence.curvature import IndefiniteHessian
from ihvp.influence.detection import DetectionCurve, detection_curve
from ihvp.influence.influence import Influence
from ihvp.influence.leave_one_out import Correlation, LeaveOneOut, leave_one_out
from ihvp.influence.optimum import NotAtOptimum
from ihvp.influence.products import InverseProducts
from ihvp.influence.scores import Scores
from ihvp.influence.store import StoreDamaged
from ihvp.influence.top_k import TopK

__all__ = [
    "Correlation",
    "DetectionCurve",
    "IndefiniteHessian",
    "Influence",
    "InverseProducts",
    "LeaveOneOut",
    "NotAtOptimum",
    "Scores",
    "StoreDamaged",
    "TopK",
    "detection_curve",
    "leave_one_out",
]
