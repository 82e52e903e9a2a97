"""Softmax regression on handwritten digits: what removing training digits does, predicted and proved.

Each removal is trained to its exact optimum. Figure 2 of Koh and Liang (ICML 2017), on every backend:

    python docs/examples/leave_one_out.py torch jax tf numdiff

With --picture it writes docs/images/leave_one_out.png.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")  # read when JAX is imported

import ihvp
from ihvp.experiments.finding import save
from ihvp.experiments.loo import REMOVALS, Model, draw, measure

PICTURE = Path(__file__).parents[1] / "images" / "leave_one_out.png"

SETTINGS = {
    "CG": {"solver": ihvp.CG(rtol=1e-6)},
    "Direct": {"solver": ihvp.Direct()},
    "CG, second order": {"solver": ihvp.CG(rtol=1e-6), "second_order": True},
    "LiSSA": {"solver": ihvp.LiSSA(batch_size=100, num_samples=4, rtol=None)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("backends", nargs="*", default=["numdiff"])
    parser.add_argument("--removals", type=int, default=REMOVALS)
    parser.add_argument("--picture", action="store_true")
    options = parser.parse_args()
    model = Model()
    removed = model.removals(options.removals)
    for backend in options.backends:
        results = {name: measure(model, backend, removed, setting) for name, setting in SETTINGS.items()}
        for name, found in results.items():
            print(f"{backend}, {name}: r {found.pearson}, Spearman {found.spearman}, slope {found.slope:.4f}")
    if options.picture:
        canvas = draw({"first order": results["CG"], "second order": results["CG, second order"]})
        save(canvas, PICTURE)


if __name__ == "__main__":
    main()
