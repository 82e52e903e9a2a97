"""How good a method of attribution is on a model: scores against training again."""

from ihvp.evaluate.agreement import Agreement
from ihvp.evaluate.damping_path import DampingPath, dampings
from ihvp.evaluate.datamodels import lds, leave_one_out
from ihvp.evaluate.mislabelled import Detection, detection
from ihvp.evaluate.outcomes import Outcomes
from ihvp.evaluate.removals import Brittleness, brittleness
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
