"""How good a method of attribution is on a model: scores against training again."""

from ihvp.evaluate.agreement import Agreement
from ihvp.evaluate.brittleness import Brittleness, brittleness
from ihvp.evaluate.dampings import DampingPath, dampings
from ihvp.evaluate.detection import Detection, detection
from ihvp.evaluate.lds import lds, leave_one_out
from ihvp.evaluate.outcomes import Outcomes
from ihvp.evaluate.retraining import retrain
from ihvp.evaluate.subsets import all_but, random_subsets

__all__ = [
    "Agreement",
    "Brittleness",
    "DampingPath",
    "Detection",
    "Outcomes",
    "all_but",
    "brittleness",
    "dampings",
    "detection",
    "lds",
    "leave_one_out",
    "random_subsets",
    "retrain",
]
