"""LiSSA's path in the plane of the toy for four scales."""

from __future__ import annotations

from pathlib import Path

from ihvp.experiments import lissa_path
from ihvp.experiments.finding import Finding

CLAIM = (
    "LiSSA's scale decides between divergence and slow convergence: on the toy, where H⁻¹v is "
    "(1.25, −0.0833), 100 steps end at (1.1986, −0.0702) for scale 20, (1.2452, −0.0813) for 10 and "
    "(1.2491, −0.0829) for 5, and at NaN for 1."
)
# By scale and damping: what the notebook printed, and the same recursion with exact products.
PRINTED = {
    (20.0, 0.0): (1.19857621, -0.07018896),
    (10.0, 0.0): (1.24517429, -0.08125068),
    (5.0, 0.0): (1.24909544, -0.08285888),
}
EXACT = {
    (20.0, 0.0): (1.20580448, -0.07531916),
    (10.0, 0.0): (1.24857568, -0.08307505),
    (5.0, 0.0): (1.24999898, -0.08333315),
}
TOO_SMALL = 1.0


def run(out: Path, backend: str | None = None) -> Finding:
    """Follow the recursion for four scales, and compare where it ends with what the notebook printed."""
    H = lissa_path.toy(backend)
    paths = [lissa_path.follow(H, scale) for scale in (20.0, 10.0, 5.0, TOO_SMALL)]
    off_exact, ends = lissa_path.deviation(H, EXACT)
    off_printed, _ = lissa_path.deviation(lissa_path.toy(step=lissa_path.SEED_STEP), PRINTED)
    error = lissa_path.divergence(H, TOO_SMALL)
    listed = ", ".join(f"({x[0]:.5f}, {x[1]:.5f}) for scale {scale:g}" for (scale, _), x in ends.items())
    refusal = (
        f"refused after {error.solution.iterations} step(s), and {error.suggested_scale:.3g} suggested"
        if error
        else "not refused"
    )
    return Finding(
        CLAIM,
        f"With exact products 100 steps end at {listed}; with the notebook's differences of r = 10⁻², within "
        f"{off_printed:.0e} of the printed numbers. Scale 1 is {refusal}.",
        f"end points as printed to {off_printed:.0e}; scale 1 {'refused' if error else 'not refused'}",
        error is not None and max(off_exact, off_printed) < lissa_path.AGREEMENT,
        lissa_path.write(out, "scale", paths),
    )
