"""Pictures of results, by matplotlib: functions draw into ``ax`` and return it.

Without ``ax`` it makes a figure, which matplotlib shows as it shows others, and without matplotlib it is
:class:`~ihvp.errors.PackageNotInstalled`. :func:`influence_panels` takes a figure, or a part of one. The
colours are of Okabe and Ito's palette, which every kind of colour vision tells apart; dashes and markers tell
curves apart in print.
"""

from ihvp.plot.eigenvalues import spectrum
from ihvp.plot.evaluation import agreement, brittleness, dampings, detection, leave_one_out
from ihvp.plot.images import influence_panels
from ihvp.plot.iterates import lissa_path
from ihvp.plot.ranking import scores, top_k
from ihvp.plot.reliability import calibration
from ihvp.plot.residuals import convergence

__all__ = [
    "agreement",
    "brittleness",
    "calibration",
    "convergence",
    "dampings",
    "detection",
    "influence_panels",
    "leave_one_out",
    "lissa_path",
    "scores",
    "spectrum",
    "top_k",
]
