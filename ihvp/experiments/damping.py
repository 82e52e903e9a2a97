"""LiSSA's path in the plane of the toy for four dampings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ihvp.experiments import lissa_path
from ihvp.experiments.finding import Finding

CLAIM = (
    "Damping moves the answer that LiSSA converges to: on the toy at scale 10, 100 steps end at "
    "(1.2452, −0.0813) without, (1.0839, −0.0543) for 0.1, (0.7147, 0.0055) for 0.5 and (0.5037, 0.0364) "
    "for 1."
)
SCALE = 10.0
# By scale and damping: what the notebook printed, and the same recursion with exact products.
PRINTED = {
    (SCALE, 0.0): (1.24517536, -0.08125092),
    (SCALE, 0.1): (1.08393502, -0.05433164),
    (SCALE, 0.5): (0.71470672, 0.00550994),
    (SCALE, 1.0): (0.50368214, 0.03640944),
}
EXACT = {
    (SCALE, 0.0): (1.24857568, -0.08307505),
    (SCALE, 0.1): (1.08533846, -0.05519278),
    (SCALE, 0.5): (0.71467831, 0.00554073),
    (SCALE, 1.0): (0.50364963, 0.03649635),
}


def run(out: Path, backend: str | None = None) -> Finding:
    """Follow the recursion for four dampings, and compare where it ends with what the notebook printed."""
    H = lissa_path.toy(backend)
    paths = [lissa_path.follow(H, *setting) for setting in EXACT]
    off_exact, ends = lissa_path.deviation(H, EXACT)
    off_printed, _ = lissa_path.deviation(lissa_path.toy(step=lissa_path.SEED_STEP), PRINTED)
    listed = ", ".join(
        f"({x[0]:.5f}, {x[1]:.5f}) for {path.damping:g}, {np.linalg.norm(x - path.exact):.0e} from the answer"
        for path, x in zip(paths, ends.values(), strict=True)
    )
    return Finding(
        CLAIM,
        f"With exact products 100 steps end at {listed}. With the notebook's differences of "
        f"r = 10⁻², within {off_printed:.0e} of the printed numbers.",
        f"end points as printed to {off_printed:.0e}",
        max(off_exact, off_printed) < lissa_path.AGREEMENT,
        lissa_path.write(out, "damping", paths),
    )
