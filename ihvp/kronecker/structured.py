"""Block-diagonal curvature with Kronecker factors: K-FAC and EK-FAC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Self

import array_api_compat
import numpy as np

from ihvp import algebra
from ihvp.arguments import check_choice, check_instance, check_integer, check_number, check_seed
from ihvp.array_store import check_array_file
from ihvp.backend import Vector
from ihvp.errors import InvalidOption
from ihvp.fingerprint import of_array, of_objective
from ihvp.kronecker.blocks import Block
from ihvp.kronecker.estimate import Options, estimate
from ihvp.kronecker.factors import Sharing
from ihvp.kronecker.file import FactorFile
from ihvp.kronecker.outputs import FisherKind
from ihvp.objective import Objective
from ihvp.operators.base import LinearOperator
from ihvp.space import VectorSpace

# What rounding leaves of a zero, in machine epsilons of the largest eigenvalue.
_ZERO = 10


class BlockStructured(LinearOperator):
    """A block-diagonal symmetric matrix whose blocks are known by their eigenvectors.

    Together they cover each entry of the flat vector once.
    """

    def __init__(self, space: VectorSpace, blocks: list[Block]) -> None:
        super().__init__(space)
        self.blocks = blocks

    def apply(self, v: Vector) -> Vector:
        return self.function(v, lambda values: values)

    def function(self, v: Vector, of: Callable[[Vector], Vector]) -> Vector:
        """``f(A) v`` of a flat native vector or block, with f, ``of``, applied to the eigenvalues."""
        return self.join(v, [block.function(_block(v), of) for block in self.blocks])

    def solve_damped(self, v: Vector, damping: float) -> Vector:
        """``(A + λI)⁻¹ v`` of a flat native vector or block; by the pseudo-inverse where that is singular."""
        zero = self._zero(damping)
        return self.function(v, lambda values: _inverse(values, damping, zero))

    def is_singular(self, damping: float) -> bool:
        """Whether an eigenvalue of ``A + λI`` is zero up to rounding."""
        zero = self._zero(damping)
        return any(bool((abs(block.values + damping) <= zero).any()) for block in self.blocks)

    def trace(self) -> float:
        """The sum of the eigenvalues."""
        return float(sum(float(block.values.sum()) for block in self.blocks))

    def frobenius_norm(self) -> float:
        """``‖A‖_F``, the root of the sum of the squares of the eigenvalues."""
        return float(np.sqrt(sum(float(_sum_of_squares(block.values)) for block in self.blocks)))

    def logdet(self, damping: float = 0.0) -> float:
        """``log det(A + λI)``, for a positive definite ``A + λI``; an InvalidOption where it is singular."""
        self.require_definite(damping)
        total = 0.0
        for block in self.blocks:
            total += float(_sum_of_logs(block.values, damping))
        return total

    def sample(self, n: int, seed: int = 0, *, damping: float = 0.0) -> Vector:
        """Draws from the normal distribution with the covariance ``(A + λI)⁻¹``, ``(P, n)``.

        An InvalidOption says that ``A + λI`` is singular.
        """
        check_integer("n", n, 1)
        check_seed(seed)
        self.require_definite(damping)
        white = self.space.asarray(np.random.default_rng(seed).standard_normal((int(n), self.space.size)))
        xp, draws, start = array_api_compat.array_namespace(white), [], 0
        for block in self.blocks:
            own = xp.reshape(white[:, start : start + block.size], (int(n), *block.values.shape))
            draws.append(block.back((block.values + damping) ** -0.5, own))
            start += block.size
        return self.join(white.T, draws)

    def require_definite(self, damping: float) -> None:
        """Refuse, as InvalidOption, a damping with which ``A + λI`` is not positive definite."""
        check_number("damping", damping, lambda _: True, "a finite number")
        lowest, zero = self._extreme("min"), self._zero(damping)
        if lowest + damping <= zero:
            least = max(-lowest, 0.0) + zero
            raise InvalidOption(
                "damping", damping, f"a number above {least:.1e}: the lowest eigenvalue is {lowest:.3e}"
            )

    def _zero(self, damping: float) -> float:
        return _ZERO * self.space.eps * max(self._extreme("max"), -self._extreme("min"), abs(damping))

    def _extreme(self, which: str) -> float:
        found = []
        for block in self.blocks:
            xp = array_api_compat.array_namespace(block.values)
            found.append(float(getattr(xp, which)(block.values)))
        return float(getattr(np, which)(found))

    def join(self, v: Vector, parts: list[list[Vector]]) -> Vector:
        """What the blocks have for each of their slices, ``(…, k)``, in the form of v."""
        placed = [
            (place.start, part)
            for block, found in zip(self.blocks, parts, strict=True)
            for place, part in zip(block.slices, found, strict=True)
        ]
        ordered = [part for _, part in sorted(placed, key=lambda pair: pair[0])]
        return _joined(v, *ordered)


class KFAC(BlockStructured):
    r"""The Gauss–Newton or Fisher matrix, a Kronecker product for each layer.

    .. math:: K = \operatorname{diag}_\ell\, (A_\ell \otimes B_\ell), \qquad
        A = \frac1W \sum_n \frac{w_n}{S} \sum_s a_{ns} a_{ns}^\top, \qquad
        B = \sum_{n,s,v} g_{nsv} g_{nsv}^\top

    a are a layer's inputs, with a 1 for its bias, and g the derivatives of cotangents of the model's outputs
    by what the layer gives (Martens and Grosse, "Optimizing neural networks with Kronecker-factored
    approximate curvature", ICML 2015; for convolutions and other weights that places share, Eschenhagen et
    al., "Kronecker-factored approximate curvature for modern neural network architectures", NeurIPS 2023). It
    is exact for a linear layer, and for deep linear networks, with squared error.

    It costs one pass over the data; what follows is in closed form: products, solves for any damping,
    determinants, samples (:class:`~ihvp.kronecker.BlockStructured`). How good an approximation it is, no
    certificate tells: those of solves are about K.

    Parameters
    ----------
    objective : Objective
        Made with ``predict=``.
    fisher : {"exact", "mc", "empirical"}
        Which cotangents: all columns of the square root of the loss's curvature in the outputs (the
        Gauss–Newton matrix), random ones with that covariance, or the gradients of the examples' losses.
    kfac_approx : {"expand", "reduce"}
        What S places that share weights are taken for: examples of their own, or parts of a mean.
    num_samples, seed : int
        Of ``fisher="mc"``, for each example.
    out : path, optional
        A file, ``.npz`` or ``.safetensors``, for what has been summed so far, and in the end for the
        factors, as by :meth:`save`. The same call goes on after an interruption, and reads what is finished.
        Writing takes up to a tenth of the time, and to see that the call is the same a pass over the data.

    Raises
    ------
    StoreMismatch, DataError, StoreError
        ``out`` is the file of another model, of other data or options, is damaged, or cannot be written.
    InvalidOption
        The objective has no ``predict``, or an option is none of these; with ``"exact"`` the loss is not
        convex in the outputs.
    MissingCapability
        The backend cannot open models.

    Notes
    -----
    Parameters that no layer explains (scales of norms, layers in loops that a framework hides) have a block
    of their own where it is small, and the diagonal of the same matrix elsewhere; :meth:`report` names them.

    Examples
    --------
    ``predict(params, batch)`` gives the outputs, and ``loss(outputs, batch)`` a scalar:

    >>> import ihvp
    >>> def solved(model, data, predict, loss, v):
    ...     K = ihvp.KFAC(ihvp.Objective(loss, model, data, predict=predict))
    ...     return ihvp.solve(K, v, damping=[1e-3, 1e-2, 1e-1])
    """

    _corrected, _passes = False, 0.0

    def __init__(
        self,
        objective: Objective,
        *,
        fisher: FisherKind = "exact",
        kfac_approx: Sharing = "expand",
        num_samples: int = 1,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> None:
        check_instance("objective", objective, Objective, "an ihvp.Objective")
        check_choice("fisher", fisher, ("exact", "mc", "empirical"))
        check_choice("kfac_approx", kfac_approx, ("expand", "reduce"))
        check_integer("num_samples", num_samples, 1)
        check_seed(seed)
        options = Options(fisher, kfac_approx, num_samples, seed)
        self.predict, self._depends_on = objective.predict, self._fingerprint(objective)
        file = None
        if out is not None:
            check_array_file("out", out)
            objective.processes.require_no_program(out)
            self._depends_on |= {name: str(value) for name, value in asdict(options).items()}
            self._depends_on |= of_objective(objective)
            file = FactorFile(out, _writer(type(self)), self._depends_on)
        processes = objective.processes
        if file is not None and processes.each(int(file.is_finished())).all():
            blocks, self._refused = file.load(objective.space)
        else:
            # What one of several processes has summed so far is of no use to another number of them.
            kept = file if processes.count == 1 else None
            blocks, self._refused, self._passes = estimate(objective, options, self._corrected, kept)
            if file is not None and processes.rank == 0:
                file.save(blocks, self._refused)
        super().__init__(objective.space, blocks)

    @property
    def passes(self) -> float:
        """How many passes backwards over the data the factors took; 0 where they were read from a file."""
        return self._passes

    def is_at(self, objective: Objective) -> bool:
        """Whether it was made at the parameters that the objective has."""
        return self._depends_on["parameters"] == self._fingerprint(objective)["parameters"]

    def report(self) -> str:
        """Which parameters have factors, and which have not, line by line."""
        lines = [f"{block.name}: {block.size:,} parameters, {block.kind}" for block in self.blocks]
        lines += [f"{name}: not taken for a layer, because {why}" for name, why in self._refused.items()]
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the factors to a file, ``.npz`` or ``.safetensors``, which is whole or not there.

        Errors are those of :meth:`ihvp.InverseProducts.save`.
        """
        FactorFile(path, _writer(type(self)), self._depends_on).save(self.blocks, self._refused)

    @classmethod
    def load(cls, path: str | Path, objective: Objective) -> Self:
        """Read what :meth:`save` wrote, for the same parameters and the same options' kind of matrix.

        StoreMismatch says that the factors are those of other parameters than the objective's, or of the
        other class; other errors are those of :meth:`ihvp.InverseProducts.load`.
        """
        check_instance("objective", objective, Objective, "an ihvp.Objective")
        operator = cls.__new__(cls)
        operator._depends_on, operator.predict = cls._fingerprint(objective), objective.predict
        blocks, operator._refused = FactorFile(path, _writer(cls), operator._depends_on).load(objective.space)
        BlockStructured.__init__(operator, objective.space, blocks)
        return operator

    @classmethod
    def _fingerprint(cls, objective: Objective) -> dict[str, str]:
        return {"operator": cls.__name__, "parameters": of_array(objective.backend.flatten(objective.params))}

    def split(self, damping: float) -> BlockStructured:
        r"""The matrix whose factors are damped one by one, by λ > 0, in place of their product.

        .. math:: (A + \pi \sqrt\lambda\, I) \otimes (B + \sqrt\lambda / \pi\, I), \qquad
            \pi^2 = \frac{\operatorname{tr} A / d_{in}}{\operatorname{tr} B / d_{out}}

        (Martens and Grosse 2015, section 6.3). Solve with it without further damping. Blocks without factors
        get λ itself.
        """
        check_number("damping", damping, lambda number: number > 0, "a finite number above 0")
        return BlockStructured(self.space, [block.split(damping) for block in self.blocks])


class EKFAC(KFAC):
    r"""K-FAC with the curvature's own diagonal in the basis of the factors' eigenvectors.

    .. math:: K = \operatorname{diag}_\ell\; (Q_A \otimes Q_B)\, \Lambda\, (Q_A \otimes Q_B)^\top, \qquad
        \Lambda = \sum_{n,v} \bigl(Q_B^\top G_{nv} Q_A\bigr)^2

    with :math:`G_{nv} = \sum_s g a^\top` the derivative by the layer's weights for one example. Of all
    matrices with these eigenvectors it is the nearest one to the curvature (George et al., "Fast approximate
    natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018), so that it is never further
    from it than :class:`KFAC`. It costs a second pass over the data.

    Parameters and errors are those of :class:`KFAC`.

    Examples
    --------
    >>> import ihvp
    >>> def influence(objective):
    ...     return ihvp.Influence(objective, damping=0.01, curvature=ihvp.EKFAC(objective))
    """

    _corrected = True

    def split(self, damping: float) -> BlockStructured:
        """Not defined, an InvalidOption: corrected eigenvalues are no products of factors."""
        raise InvalidOption("damping", damping, "the damping of a solve, or KFAC(…).split(damping)")


def _writer(kind: type[KFAC]) -> str:
    return f"{kind.__name__}.save"


@algebra.fused()
def _joined(v: Vector, *parts: Vector) -> Vector:
    """Parts ``(…, k)`` one below the other, in the form of v."""
    joined = array_api_compat.array_namespace(v).concat([part.T for part in parts], axis=1)
    return joined[0] if v.ndim == 1 else joined.T


@algebra.fused()
def _inverse(values: Vector, damping: float, zero: float) -> Vector:
    """``1 / (values + damping)``, and 0 where that is no more than ``zero``."""
    xp = array_api_compat.array_namespace(values)
    damped = values + damping
    counts = xp.abs(damped) > zero
    return xp.where(counts, 1.0 / xp.where(counts, damped, xp.ones_like(damped)), 0.0 * damped)


@algebra.fused()
def _sum_of_logs(values: Vector, damping: float) -> Vector:
    xp = array_api_compat.array_namespace(values)
    return xp.sum(xp.log(values + damping))


@algebra.fused()
def _sum_of_squares(values: Vector) -> Vector:
    return (values**2).sum()


def _block(v: Vector) -> Vector:
    return v[:, None] if v.ndim == 1 else v
