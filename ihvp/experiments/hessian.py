"""H and G of a small network, over all examples, a minibatch and one, and their approximations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ihvp
from ihvp._problems import SeedNetwork
from ihvp.algebra import to_numpy
from ihvp.experiments import choice, figure
from ihvp.experiments.finding import Finding, write

CLAIM = (
    "H and the outer product of gradients G of an 8-4-4-2 network are means over examples, so that "
    "minibatches of 100 add up to the full ones; K eigenpairs approximate them, with rank K or with λ_K in "
    "place of all other eigenvalues; and xᵀHx needs no H."
)
COLUMNS = ("matrix", "examples", "k", "eigenvalue", "low_rank_error", "full_rank_error")

K, BATCH = 10, 100
PARTS = {"all 1,000": slice(0, 1000), "minibatch of 100": slice(0, BATCH), "one example": slice(0, 1)}
MATRICES = {"H": ihvp.Hessian, "G": ihvp.OPG}
# The automatic step of finite differences leaves 1e-9 or so, automatic differentiation only rounding.
_AGREEMENT, _AGREEMENT_FLOAT32 = 1e-7, 1e-4
# Relative to the largest eigenvalue: below, the sign is that of rounding or of the differences' error.
_NOISE = 1e-8
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """A matrix and the errors of its approximations."""

    matrix: Array  # (P, P)

    @cached_property
    def eigenpairs(self) -> tuple[Array, Array]:
        """Eigenvalues in descending order, and their vectors."""
        values, vectors = np.linalg.eigh(self.matrix)
        return values[::-1], vectors[:, ::-1]

    def errors(self, k: int) -> tuple[float, float]:
        """Of the low-rank and the full-rank approximation by the k largest, relative, in Frobenius' norm.

        NaN for the full-rank one where the k-th eigenvalue is not positive beyond noise: it can stand for no
        others.
        """
        values, vectors = (part[..., :k] for part in self.eigenpairs)
        low = _distance(ihvp.LowRank.of(values, vectors).to_dense(), self.matrix)
        if values[-1] <= _NOISE * values[0]:
            return low, float("nan")
        return low, _distance(ihvp.FullRank.of(values, vectors).to_dense(), self.matrix)


def run(out: Path, backend: str | None = None) -> Finding:
    """Form the matrices, compare them with hand-made ones, and approximate each by 1 to P eigenpairs."""
    problem: Any = SeedNetwork()
    objective = choice.objective(problem, backend or "numdiff")
    x = np.random.default_rng(0).standard_normal(problem.size)
    spectra: dict[tuple[str, str], Spectrum] = {}
    wrong: dict[str, float] = {"matrices": 0.0, "minibatches": 0.0, "eigenvalues": 0.0, "forms": 0.0}

    for name, operator in MATRICES.items():
        by_hand = problem.hessian if name == "H" else problem.opg
        for part, rows in PARTS.items():
            A = operator(_over(objective, problem, rows))
            spectrum = Spectrum(np.asarray(to_numpy(A.to_dense()), dtype=np.float64))
            spectra[name, part] = spectrum
            found = ihvp.eigsh(A, k=K).values
            _worsen(wrong, "matrices", _distance(spectrum.matrix, by_hand(rows)))
            _worsen(wrong, "eigenvalues", _distance(found, spectrum.eigenpairs[0][:K]))
            form = float(A.quadratic_form(A.space.asarray(x)))
            _worsen(wrong, "forms", abs(form / (x @ spectrum.matrix @ x) - 1))
        batches = [slice(start, start + BATCH) for start in range(0, problem.rows, BATCH)]
        mean = sum(to_numpy(operator(_over(objective, problem, rows)).to_dense()) for rows in batches)
        _worsen(wrong, "minibatches", _distance(mean / len(batches), spectra[name, "all 1,000"].matrix))

    errors_by_k = [
        (name, part, k, float(value), *spectrum.errors(k))
        for (name, part), spectrum in spectra.items()
        for k, value in enumerate(spectrum.eigenpairs[0], 1)
    ]
    errors = {row[0]: row[4:] for row in errors_by_k if row[1] == "all 1,000" and row[2] == K}
    listed = "; ".join(f"{name}: {low:.2g} and {full:.2g}" for name, (low, full) in errors.items())
    return Finding(
        CLAIM,
        f"Relative deviations: matrices from those by hand {wrong['matrices']:.0e}, the mean over "
        f"minibatches from the full matrix {wrong['minibatches']:.0e}, {K} eigenvalues from the dense "
        f"matrix's {wrong['eigenvalues']:.0e}, xᵀHx without H from that with it {wrong['forms']:.0e}. The "
        f"low-rank and the full-rank approximation with K = {K} are off by: {listed}.",
        f"both ways the same to {max(wrong.values()):.0e}; {K} eigenpairs leave {errors['G'][0]:.0e} of G",
        max(wrong.values()) < (_AGREEMENT if objective.space.eps < 1e-12 else _AGREEMENT_FLOAT32),
        write(out, "hessian", COLUMNS, errors_by_k, _draw(errors_by_k)),
    )


def _over(objective: ihvp.Objective, problem: SeedNetwork, rows: slice) -> ihvp.Objective:
    return objective.on(tuple(array[rows] for array in problem.batch))


def _worsen(wrong: dict[str, float], what: str, error: float) -> None:
    wrong[what] = max(wrong[what], float(error))


def _distance(found: Any, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _draw(rows: list[tuple[str, str, int, float, float, float]]) -> Any:
    canvas, axes = figure.panels(len(MATRICES), sharey=True, height=4.2)
    for ax, name in zip(axes, MATRICES, strict=True):
        for part, style in zip(PARTS, figure.styles(), strict=False):
            k, _, low, full = np.array([row[2:] for row in rows if row[:2] == (name, part)]).T
            ax.semilogy(k, low, color=style["color"], label=f"{part}, rank K")
            ax.semilogy(k, full, ":", color=style["color"], linewidth=2.2, label=f"{part}, full rank")
        ax.axvline(K, color=figure.NEUTRAL, linewidth=1, linestyle="--", label=f"K = {K}")
        ax.set(xlabel="eigenpairs K", ylim=(1e-4, 10))
        ax.set_title(name, fontsize=12)
    axes[0].set_ylabel("relative error of the matrix")
    handles, labels = axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return canvas
