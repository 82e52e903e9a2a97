"""An inner problem: a loss at its optimum, as a function of hyperparameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp._inference import create_backend
from ihvp.arguments import check_flag
from ihvp.backend import CurvatureBackend, GradientFunction, Params, SupportsBlocks, Vector
from ihvp.data import is_array, ordered_like
from ihvp.errors import HyperparametersWithoutEffect, InvalidOption, ParameterError, SolverError, describe
from ihvp.implicit.joint import implicit, joined, joint_loss, like_given
from ihvp.influence.caller import level_outside
from ihvp.influence.optimum import NotAtOptimum
from ihvp.objective import Objective
from ihvp.objective.entries import Entries
from ihvp.operators import Hessian
from ihvp.solution import Solution
from ihvp.solvers import Solver, inverse
from ihvp.solvers.solve import Inverse
from ihvp.weighting import Weights

# Random right-hand sides that tell how large ‖C A⁻¹‖ is, and the factor on what they tell: the mean square of
# two normal numbers is below a hundredth of its expectation once in a hundred times.
_PROBES, _SAFETY = 2, 10.0
_REFINEMENTS, _RATIO = 3, 0.1
_NEARBY = 0.1


class NoImplicitPart(UserWarning):
    """The optimum of the inner problem does not depend on some of the hyperparameters.

    Examples
    --------
    >>> import warnings
    >>> import ihvp
    >>> warnings.simplefilter("ignore", ihvp.implicit.NoImplicitPart)
    """


@dataclass(frozen=True)
class Hypergradient:
    """The derivative of an outer loss at the optimum of an inner one by the hyperparameters.

    Attributes
    ----------
    gradient
        In the structure of the hyperparameters, a list of such for several outer losses.
    error : float or ndarray (k,), optional
        A bound of ``‖gradient − exact‖`` from what the solve has left: with ``C = ∂²inner/∂h∂ω``, the
        hypergradient of the residual r, ``‖C (H + λI)⁻¹ r‖``, and what a second solve has left of it. It
        holds for these parameters: how far they are from the optimum is not in it. None with ``bound=False``.
    solution : Solution
        The solve ``(H + λI) x = ∂outer/∂ω``, with its certificate; x is flat.
    inner_gradient_norm : float
        ``‖∂inner/∂ω‖``, which is 0 at the optimum.
    direct_only : tuple of str
        The hyperparameters that the optimum does not depend on: theirs is the direct part alone.

    Examples
    --------
    Those of :func:`ihvp.hypergradient` make one:

    >>> import numpy as np
    >>> import ihvp
    >>> from ihvp.backend import GradientFunction
    >>> inner = GradientFunction(lambda w, h, batch: (w - 1 + h * w, 0.5 * w @ w))
    >>> outer = GradientFunction(lambda w, h, batch: (2 * w, 0.0))
    >>> ihvp.hypergradient(outer, inner, np.array([0.5]), 1.0).solution.converged
    True
    """

    gradient: Any
    error: float | NDArray[np.float64] | None
    solution: Solution
    inner_gradient_norm: float
    direct_only: tuple[str, ...] = ()


class InnerProblem:
    r"""The optimum :math:`\omega^*(h)` of an inner loss, as a function of the hyperparameters h.

    .. math:: \frac{d\omega^*}{dh} = -(H + \lambda I)^{-1} C^\top, \qquad
        H = \frac{\partial^2 C_{inner}}{\partial\omega^2}, \quad
        C = \frac{\partial^2 C_{inner}}{\partial h\, \partial\omega}

    For loops over hyperparameters: what was compiled and checked serves all of them. Parameters and
    hyperparameters that change in place are followed, and :meth:`at` moves to others.

    Parameters
    ----------
    inner : callable
        ``inner(params, hyper, batch)``, a scalar as for :class:`ihvp.Objective`. For finite differences an
        :class:`ihvp.backend.GradientFunction` whose ``grad`` gives the pair of its gradients.
    params
        The optimum, as for :class:`ihvp.Objective`.
    hyper
        Numbers and arrays in the structures that parameters may have; of torch and Keras also a model.
    data, batch_size, reduction, weights, backend, checks : optional
        As for :class:`ihvp.Objective`.
    damping : float
        λ ≥ 0.
    solver : Solver, optional
        As for :func:`ihvp.solve`.

    Examples
    --------
    The optimum of ``(ω − 1)² / 2 + h ω² / 2`` is ``1 / (1 + h)``, and ``ω*²`` falls by ``2 / (1 + h)³``:

    >>> import numpy as np
    >>> import ihvp
    >>> from ihvp.backend import GradientFunction
    >>> inner = GradientFunction(lambda w, h, batch: (w - 1 + h * w, 0.5 * w @ w))
    >>> outer = GradientFunction(lambda w, h, batch: (2 * w, 0.0))
    >>> problem = ihvp.InnerProblem(inner, np.array([0.5]), 1.0)
    >>> round(problem.hypergradient(outer).gradient, 6)
    -0.25
    """

    def __init__(
        self,
        inner: Callable[..., Any] | GradientFunction,
        params: Params,
        hyper: Any,
        data: Any = None,
        damping: float = 0.0,
        solver: Solver | None = None,
        *,
        batch_size: int | None = None,
        reduction: str = "mean",
        weights: Weights | None = None,
        backend: str | CurvatureBackend | None = None,
        checks: bool = True,
    ) -> None:
        self.params, self.hyper, self.damping, self.solver = params, hyper, damping, solver
        self._single = isinstance(hyper, Number) or is_array(hyper, scalar=True)
        self._by_gradient = by_gradient = isinstance(inner, GradientFunction)
        backend = create_backend(params, backend, has_gradient=by_gradient)
        loss = joint_loss("inner", inner, self._single)
        self._held = both = joined(backend, params, self._listed(hyper))
        self.objective = Objective(
            loss.loss if by_gradient else loss,
            both,
            data,
            batch_size,
            reduction,
            backend=backend,
            grad=loss.grad if by_gradient else None,
            weights=weights,
            checks=checks,
        )
        self._entries = Entries([slice(0, backend.flatten(both[0]).shape[0])], self.objective.num_params)
        if self._size == self.objective.num_params:
            raise ParameterError(
                f"The hyperparameters, {describe(hyper)}, hold no number; expected one or more."
            )

    def _listed(self, hyper: Any) -> Any:
        return [hyper] if self._single else hyper

    @property
    def _size(self) -> int:
        """The number of parameters, which come first."""
        return self._entries.count

    @property
    def _inner(self) -> Objective:
        """The inner loss as a function of the parameters alone."""
        return self.objective.by({"params": slice(0, self._size)})

    def at(self, params: Params = None, hyper: Any = None) -> InnerProblem:
        """The same problem at other hyperparameters and its optimum there; what is None stays.

        Raises
        ------
        ParameterError
            They are of another structure, size or dtype.
        """
        other = copy.copy(self)
        other.params, other.hyper = self._placed(params, hyper)
        backend, objective = self.objective.backend, self.objective
        held = joined(backend, self._held[0], self._listed(other.hyper))[1]
        flat = objective.space.xp.concat([backend.flatten(other.params), backend.flatten(held)], axis=0)
        if flat.shape[0] != objective.num_params:
            raise ParameterError(
                f"Parameters and hyperparameters have {flat.shape[0]:,} entries; expected "
                f"{objective.num_params:,}, as those that the problem was made with."
            )
        # In the structure that was compiled for.
        other.objective = objective.at(backend.unflatten(flat, self._held))
        return other

    def hypergradient(
        self,
        outer: Callable[..., Any] | GradientFunction | Sequence[Any],
        test_data: Any = None,
        *,
        bound: bool = True,
    ) -> Hypergradient:
        """``d outer(ω*(h), h) / dh``.

        Parameters
        ----------
        outer : callable, or list of them
            ``outer(params, hyper, batch)``, like ``inner``. Several share one block solve.
        test_data : optional
            The data of the outer loss, where each example weighs 1. For several losses a list of one for
            each, or data in memory that they share.
        bound : bool
            Whether to bound the error, which takes a second solve.

        Raises
        ------
        SolverError
            The solve missed its tolerance.
        HyperparametersWithoutEffect
            Nothing depends on some of the hyperparameters.
        """
        check_flag("bound", bound)
        size = self._warn_unless_optimal()
        outers = self._outers(outer, test_data)
        xp = self.objective.space.xp
        gradients = xp.stack([objective.gradient() for objective in outers], axis=1)
        right, direct = gradients[: self._size], gradients[self._size :]
        inverse = self._inverse()
        several = isinstance(outer, (list, tuple))
        solution = inverse.solve(right if several else right[:, 0])
        x = solution.x if several else solution.x[:, None]
        products = self._products(x)
        total = direct - products[self._size :]
        direct_only = self._without_effect(outers, direct, products[self._size :])
        if direct_only:
            warnings.warn(
                f"The optimum of the inner problem does not depend on {', '.join(direct_only)}: there the "
                "hypergradient is the derivative of the outer loss alone.",
                NoImplicitPart,
                stacklevel=level_outside(),
            )
        noise = np.asarray(solution.noise) * algebra.norms(right)
        errors = self._errors(inverse, right, direct, products, x, noise) if bound else None
        parts = [self._given(total[:, i]) for i in range(len(outers))]
        return Hypergradient(
            parts if several else parts[0],
            errors if several or errors is None else float(errors[0]),
            solution,
            size,
            direct_only,
        )

    def optimum(self, params: Params = None, hyper: Any = None) -> Params:
        """The parameters, which the framework differentiates as ``ω*(h)``: by the implicit function theorem.

        What they are passed into, ``outer(problem.optimum(w, h), …)``, has the hypergradient as its
        derivative by h: in ``backward()`` of torch, ``tape.gradient`` of TensorFlow, ``jax.grad``. Each
        backward pass is a certified solve.

        Parameters
        ----------
        params, hyper : optional
            As for :meth:`at`. For ``jax.grad`` the hyperparameters are to be passed.

        Raises
        ------
        MissingCapability
            The backend has no derivatives of its own.
        TracedValue
            A compiler traces the call.
        """
        backend = implicit(self.objective.backend)

        def function(params: Params, hyper: Any) -> Any:
            problem = self.at(params, hyper)
            values = backend.flatten(problem.objective.params)[: self._size]

            def pull_back(cotangents: Any) -> tuple[None, Any]:
                x = problem._inverse().solve(backend.flatten(cotangents)).x
                return None, problem._given(-problem._products(x[:, None])[self._size :, 0])

            return backend.unflatten(values, params), pull_back

        return backend.differentiable(function, *self._placed(params, hyper))

    def _placed(self, params: Params, hyper: Any) -> tuple[Params, Any]:
        """Both in the order of those that are held, which stand for what is None."""
        return (
            self.params if params is None else ordered_like(params, self.params),
            self.hyper if hyper is None else ordered_like(hyper, self.hyper, "hyperparameters"),
        )

    def _outers(self, outer: Any, test_data: Any) -> list[Objective]:
        several = isinstance(outer, (list, tuple))
        losses = list(outer) if several else [outer]
        data = test_data if several and isinstance(test_data, list) else [test_data] * len(losses)
        if not losses:
            raise InvalidOption("outer", outer, "an outer loss, or a list of one or more")
        if len(data) != len(losses):
            raise InvalidOption("test_data", test_data, f"a list of {len(losses)}, one for each outer loss")
        return [
            self.objective.on(
                entry, joint_loss("outer", loss, self._single, self._by_gradient), weights=None, alone=True
            )
            for loss, entry in zip(losses, data, strict=True)
        ]

    def _inverse(self) -> Inverse:
        return inverse(Hessian(self._inner), self.damping, self.solver)

    def _products(self, x: Vector) -> Vector:
        """``H x`` and, below it, ``C x``."""
        return Hessian(self.objective, memory_budget=0).apply(self._entries.within(x))

    def _given(self, vector: Vector) -> Any:
        """A vector of hyperparameters in the structure that they were given in."""
        found = like_given(self.objective.backend, vector, self._held[1], self._listed(self.hyper))
        return found[0] if self._single else found

    def _warn_unless_optimal(self) -> float:
        """‖∂inner/∂ω‖; a warning where a change of the parameters by a hundredth may have caused it."""
        inner = self._inner
        size = float(algebra.norms(inner.gradient()))
        nearby = float(algebra.norms(inner.at(inner._subject.nearby().params).gradient()))
        if size > _NEARBY * nearby:
            warnings.warn(
                f"The parameters are not at the optimum of the inner problem: its gradient has norm "
                f"{size:.1e}, and {nearby:.1e} where each of them changes by a tenth; expected at most a "
                "tenth of that. A hypergradient is that of an optimum: train on, or put all of the loss into "
                "`inner`.",
                NotAtOptimum,
                stacklevel=level_outside(),
            )
        return size

    def _without_effect(self, outers: list[Objective], direct: Vector, crossed: Vector) -> tuple[str, ...]:
        """The hyperparameters that the optimum does not depend on, of which the outer losses must do so."""
        backend, held = self.objective.backend, self._held[1]
        whole = {"hyper": slice(0, crossed.shape[0])}
        named = backend.blocks(held) if isinstance(backend, SupportsBlocks) else whole
        named = whole if len(named) == 1 else named
        names = {name: place for name, place in named.items() if _is_zero(crossed[place])}
        if not names:
            return ()
        # A derivative may vanish here alone.
        nearby = self.objective.at(self.objective._subject.nearby().params)
        v = self._entries.within(self._random(1)[:, 0])
        elsewhere = nearby.mean(
            lambda batch: backend.hvp(nearby.loss, nearby.params, batch, v), "A mixed derivative"
        )[self._size :]
        names = {name: place for name, place in names.items() if _is_zero(elsewhere[place])}
        unused = {name: place for name, place in names.items() if _is_zero(direct[place])}
        for outer in outers if unused else ():
            slope = outer.at(nearby.params).gradient()[self._size :]
            unused = {name: place for name, place in unused.items() if _is_zero(slope[place])}
        if unused:
            raise HyperparametersWithoutEffect(list(unused))
        return tuple(names)

    def _random(self, count: int) -> Vector:
        values = np.random.default_rng(0).standard_normal((self._size, count))
        return self.objective.space.asarray(values)

    def _errors(
        self,
        inverse: Inverse,
        right: Vector,
        direct: Vector,
        products: Vector,
        x: Vector,
        noise: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Bounds of ``‖C A⁻¹ r‖`` with ``A = H + λI`` and the residual ``r = right − A x``, of each column.

        ``d ≈ A⁻¹ r`` by a second solve, whose own residual r′ counts with ``‖C A⁻¹‖ ‖r′‖``. That norm is not
        above the Frobenius norm, which the products with random vectors tell.
        """
        size, space = self._size, inverse.space
        rounding = 4 * space.product_eps * (algebra.norms(direct) + algebra.norms(products[size:]))
        mixed = Hessian(self.objective)
        rounding += [mixed.product_error(self._entries.within(x)) for x in x.T]
        rest = right - products[:size] - self.damping * x
        probes = self._random(_PROBES)
        correction: Vector = None
        for _ in range(_REFINEMENTS):
            columns = rest if correction is not None else space.xp.concat([rest, probes], axis=1)
            try:
                step = inverse.solve(columns).x
            except SolverError as error:  # what it has left counts in full
                step = error.solution.x
            found = self._products(step)
            count = right.shape[1]
            if correction is None:
                spread = float(np.sqrt(np.mean(algebra.norms(found[size:, count:]) ** 2)))
                correction = found[size:, :count]
            else:
                correction = correction + found[size:]
            rest = rest - found[:size, :count] - self.damping * step[:, :count]
            left = spread * (_SAFETY * algebra.norms(rest) + noise)
            if np.all(left <= _RATIO * algebra.norms(correction)):
                break
        return np.asarray(algebra.norms(correction) + left + rounding)


def _is_zero(block: Vector) -> bool:
    return block.shape[0] > 0 and float(algebra.norms(block).max()) == 0.0
