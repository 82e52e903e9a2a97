"""Every way a call can fail, each with what was found, what was expected and what to do.

All derive from :class:`IhvpError`. An error also derives from the built-in exception that a
caller would expect (``TypeError`` for a wrong type, ``ImportError`` for a missing framework …).
The classes build their own text from the facts, so that one cause reads the same everywhere.

Examples
--------
An error of a solve says what would do, and holds what was computed:

>>> import numpy as np
>>> import ihvp
>>> A, v = ihvp.Dense(np.diag([2.0, -1.0])), np.ones(2)
>>> try:
...     solution = ihvp.solve(A, v)
... except ihvp.errors.IndefiniteCurvature as error:
...     solution = ihvp.solve(A, v, damping=error.suggested_damping)
>>> solution.converged
True
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from ihvp.eigenpairs import Eigenpairs
    from ihvp.solution import Solution


class IhvpError(Exception):
    """Base class of every error that this library raises on purpose.

    Examples
    --------
    >>> import ihvp
    >>> try:
    ...     ihvp.use("caffe")
    ... except ihvp.IhvpError as error:
    ...     print(type(error).__name__, "-", str(error).partition(".")[0])
    UnknownBackend - No backend is called 'caffe'
    """

    # To AutoGraph of TensorFlow: raise it as it is, in the place of an error of another class with its text.
    ag_pass_through = True

    def __reduce__(self) -> tuple[Any, ...]:
        # The text is made already, and a worker's error must reach its parent: nothing is built again.
        return _restored, (type(self), *self.args), vars(self)


# Choosing a backend


class UnknownBackend(IhvpError, LookupError):
    """No registered backend has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name, self.known = name, sorted(known)
        listed = ", ".join(self.known) or "none"
        super().__init__(f"No backend is called {name!r}. Registered backends: {listed}.")


class BackendNotInstalled(IhvpError, ImportError):
    """The backend is registered, but its framework is not installed."""

    def __init__(self, backend: str, framework: str, install: str) -> None:
        self.backend, self.framework, self.install = backend, framework, install
        super().__init__(
            f"The backend {backend!r} needs the package {framework!r}, which is not installed. "
            f"Install it with: {install}"
        )


class BrokenBackend(IhvpError, RuntimeError):
    """The backend's plugin is registered but cannot be loaded; its own error is chained."""

    def __init__(self, backend: str, cause: BaseException) -> None:
        self.backend = backend
        super().__init__(
            f"The plugin of backend {backend!r} failed to load: {type(cause).__name__}: {cause}. "
            "The other backends are not affected. Repair or uninstall the plugin's package."
        )


class UndeterminedBackend(IhvpError, TypeError):
    """The parameters' type belongs to no usable backend."""

    def __init__(self, found: str, known: Iterable[str], advice: str = "") -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(
            f"Cannot tell the backend from {found}. "
            + (advice or "Choose one with backend=… or ihvp.use(…).")
            + f" Registered backends: {listed}."
        )


class MixedFrameworks(IhvpError, TypeError):
    """Arrays of two frameworks meet where one is expected."""

    def __init__(self, found: Iterable[str], expected: str, advice: str) -> None:
        super().__init__(f"Found {' and '.join(found)}; expected {expected}. {advice}")


class MissingCapability(IhvpError, NotImplementedError):
    """The backend lacks an optional capability that the request needs."""

    def __init__(self, backend: str, capability: str, advice: str = "") -> None:
        super().__init__(
            f"The backend {backend!r} does not implement {capability!r}, which this needs. {advice}".rstrip()
        )


class PackageNotInstalled(IhvpError, ImportError):
    """A feature needs an optional package that is not installed."""

    def __init__(self, feature: str, package: str, install: str) -> None:
        super().__init__(
            f"`{feature}` needs the package {package!r}, which is not installed. Install it with: {install}"
        )


class UnknownExperiment(IhvpError, LookupError):
    """``ihvp experiment`` has none of this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name, self.known = name, list(known)
        super().__init__(f"No experiment is called {name!r}. Known: {', '.join(self.known)}; or all.")


# What the caller passed


class InvalidOption(IhvpError, ValueError):
    """An option has a value outside its range."""

    def __init__(self, option: str, found: object, expected: str) -> None:
        super().__init__(f"{option} is {_shown(found)}; expected {expected}.{instead(found)}")


class FunctionFailed(IhvpError, RuntimeError):
    """A function that the caller passed raised an error of its own, which is chained: ``__cause__``.

    What :meth:`of` makes is also of the built-in kind of its cause: ``except KeyError`` still catches it.
    """

    _kinds: tuple[Any, Any] | None = None

    def __init__(self, what: str, cause: BaseException) -> None:
        self.args = (f"{what} failed with {type(cause).__name__}: {_first(str(cause))}",)

    @classmethod
    def of(cls, what: str, cause: BaseException) -> FunctionFailed:
        """The error that also is of the cause's built-in kind.

        >>> error = FunctionFailed.of("train_fn(removed, start)", KeyError("lr"))
        >>> print(error, isinstance(error, KeyError))
        train_fn(removed, start) failed with KeyError: 'lr'. True
        """
        kind = next(kind for kind in type(cause).__mro__ if kind.__module__ == "builtins")
        text = cls(what, cause).args
        try:
            return cast(FunctionFailed, _failure(cls, kind, *text))
        except TypeError:  # a kind that is made of more than a text
            return cls(what, cause)

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return _failure, (*(self._kinds or (type(self), None)), *self.args), vars(self)


class ParameterError(IhvpError, TypeError):
    """The parameters cannot be differentiated: wrong container, integer leaves, none at all."""


class NotSymmetric(IhvpError, ValueError):
    """An operator is not symmetric: ``uᵀ(Av)`` and ``vᵀ(Au)`` differ by more than rounding."""

    def __init__(self, left: float, right: float, allowed: float, where: str = "random u and v") -> None:
        self.left, self.right = left, right
        super().__init__(
            f"The operator is not symmetric: uᵀ(Av) = {left:.6e} and vᵀ(Au) = {right:.6e} for {where}; "
            f"expected equal numbers, up to {allowed:.1e}. Pass a symmetric matrix, such as (A + Aᵀ) / 2; a "
            "loss that draws random numbers must draw the same ones in every call."
        )


class ProcessesDiffer(IhvpError, ValueError):
    """The processes that share the data do not ask for the same thing.

    Attributes
    ----------
    ranks : list of int
        Those that differ from the first process.
    """

    def __init__(self, what: str, ranks: Sequence[int]) -> None:
        self.ranks = list(ranks)
        listed = ", ".join(map(str, self.ranks))
        super().__init__(
            f"The processes differ in {what}: rank {listed} from rank 0; expected the same model, loss and "
            "settings in all of them: only the objective's data is each one's own. Load one checkpoint in "
            "every process, pass the same arguments, and let a loss refer to nothing that belongs to a rank."
        )


class ProcessFailed(IhvpError, RuntimeError):
    """One of the processes that share the data raised an error or ended, while the others waited for it.

    Attributes
    ----------
    rank : int or None
        Which one, where that is known.
    """

    def __init__(self, rank: int | None, reason: str) -> None:
        self.rank = rank
        who = "Another process" if rank is None else f"The process of rank {rank}"
        super().__init__(
            f"{who} failed ({_first(reason)}); expected all of them to come to the same sums. End the "
            "processes, mend what failed, and start them again."
        )


class WorkerFailed(IhvpError, RuntimeError):
    """A worker of joblib could not do its part."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The workers of joblib could not do their part ({_first(reason)}); expected a model, functions "
            "and data that another process can load, and workers of loky, threading, dask or ray. Put "
            "functions and classes into a module that the workers can import, or leave "
            "joblib.parallel_config out. Finished tiles of out=… are kept."
        )


class TooLarge(IhvpError, MemoryError):
    """What was asked for does not fit in memory; found before any work.

    Attributes
    ----------
    needed, available : int or None
        Bytes; ``available`` is None where the device does not tell.
    """

    def __new__(cls, *args: Any) -> TooLarge:
        # That of MemoryError, which would be found first, refuses subclasses.
        return Exception.__new__(cls, *args)

    def __init__(self, what: str, needed: int, available: int | None, advice: str) -> None:
        self.needed, self.available = needed, available
        free = "more than the device has free" if available is None else f"{gigabytes(available)} are free"
        super().__init__(f"{what} takes {gigabytes(needed)} of memory; {free}. {advice}")


class DataError(IhvpError, ValueError):
    """The data cannot be summed over."""


class EmptyData(DataError):
    """The data holds no batch, or a batch holds no example."""


class NotReiterable(DataError, TypeError):
    """The data can be iterated only once, but every product needs all of it."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"The data is {found}, which can be iterated only once; every product goes over all the "
            "data again. Pass a list of batches, a DataLoader, a tf.data.Dataset or one batch of arrays."
        )


class UnequalBatches(DataError):
    """Two batches, or two arrays of one batch, do not fit together."""


class OrderChanges(DataError):
    """The data gives other examples at each pass, where results count them by their place."""

    def __init__(self, what: str, found: str) -> None:
        super().__init__(
            f"The {what} data is {found}, whose first batch differs between two passes; expected the same "
            "examples in the same order each time, because scores count them by their place. Turn shuffling "
            "and random augmentation off, or pass a list of batches."
        )


class WeightError(DataError):
    """The weights of examples are not one finite number ≥ 0 each, always the same, or all are 0."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"{found}; expected a finite number ≥ 0 for each example, of shape (B,), not all of them 0, and "
            "always the same for an example: what the mean of the loss divides by, as a number of labelled "
            "tokens or the weight of a class."
        )


class NothingToSample(IhvpError, TypeError):
    """Batches of examples were asked of an operator that is no mean over examples."""

    def __init__(self, method: str, operator: object) -> None:
        super().__init__(
            f"{method} draws batches of examples, but {operator} is no mean over examples. Pass an operator "
            "of an Objective with data, or batch_size=None to multiply with the operator itself."
        )


class VectorError(IhvpError, ValueError):
    """A vector does not belong to the operator's space: shape, dtype, device or value."""


class WrongShape(VectorError):
    """A vector or block has the wrong shape."""

    def __init__(self, found: Sequence[int], size: int) -> None:
        super().__init__(
            f"v has shape {tuple(found)}; expected ({size},) for a vector or ({size}, k) with k ≥ 1 for a "
            f"block of k columns, or the parameters' own structure, where P = {size} is the number of "
            "parameters."
        )


class WrongDtype(VectorError, TypeError):
    """A vector has another dtype than those of the parameters have."""

    def __init__(self, found: object, expected: object) -> None:
        super().__init__(
            f"v has dtype {found}; expected {expected}, that of these parameters' vectors. Cast v, or the "
            "parameters."
        )


class TracedValue(VectorError, TypeError):
    """An array has no values yet: a framework traces or transforms the function that it belongs to."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is traced, inside {_TRACING}; expected arrays with values, as checks and iterations "
            f"read them.{_OUTSIDE}"
        )


class WrongDevice(VectorError):
    """A vector lives on another device than the parameters."""

    def __init__(self, found: object, expected: object) -> None:
        super().__init__(
            f"v is on device {found}; expected {expected}, where the parameters are. Move v there first."
        )


# What the loss did


class LossError(IhvpError):
    """The loss is not a function that can be differentiated twice."""


class LossFailed(LossError, FunctionFailed):
    """What the loss or the framework raised while the loss was computed or differentiated; it is chained."""

    def __init__(self, what: str, cause: BaseException) -> None:
        super().__init__(what, cause)
        self.args = (
            f"{self.args[0]} Expected loss(params, batch), loss(outputs, batch) beside predict=…, or in a "
            "hypergradient loss(params, hyper, batch), for batches of any number of examples, of operations "
            "that the framework differentiates; without data the batch is None.",
        )


class LossNotScalar(LossError, TypeError):
    """The loss returned something else than one real number."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"The loss returned {found}; expected one real scalar. Return the mean of the per-example "
            "losses (or their sum, with reduction='sum')."
        )


class LossIndependentOfParameters(LossError, ValueError):
    """The loss does not depend on the parameters that it is differentiated by."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The loss does not depend on the parameters: {reason}. Compute it from the `params` that are "
            "passed to it, without detaching, copying or converting them."
        )


class HyperparametersWithoutEffect(LossError, ValueError):
    """Neither the outer loss nor the optimum of the inner one depends on some of the hyperparameters."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(
            f"Neither the outer loss nor the gradient of the inner one depends on {', '.join(names)}; "
            "expected hyperparameters that one of them is computed from. Compute it from the `hyper` that is "
            "passed to the losses, without detaching or converting it, or leave them out."
        )


class GradientRequired(LossError, TypeError):
    """Finite differences were given a loss where nothing can compute its gradient."""

    def __init__(self, params: str) -> None:
        super().__init__(
            f"Found a loss over {params}; finite differences need its gradient. Pass grad=…, a function "
            "grad(params, batch), in place of the loss, or put the parameters in a framework that "
            "differentiates (torch, jax, tf)."
        )


class GradientMismatch(LossError, TypeError):
    """The caller's gradient function returned something that is not a gradient of the parameters."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(
            f"The gradient function returned {found}; expected {expected}. Return the gradient in the "
            "structure of the parameters, or as one flat array."
        )


class UnsupportedOperation(LossError, NotImplementedError):
    """An operation inside the loss has no second derivative in this framework."""

    def __init__(self, operation: str, framework: str, tried: str) -> None:
        self.operation = operation
        super().__init__(
            f"{framework} cannot differentiate {operation} twice (tried: {tried}). Replace the operation "
            "inside the loss, or use finite differences of the gradient: backend='numdiff'."
        )


class NonFinite(LossError, ArithmeticError):
    """A loss, gradient or product is NaN or infinite."""

    def __init__(self, what: str, batch: int | None = None) -> None:
        self.batch = batch
        where = "" if batch is None else f" on batch {batch}"
        super().__init__(
            f"{what} is not finite (NaN or infinite){where}. Look at that batch's data and at log, sqrt or "
            "division in the loss. float16 ends at 65,504: there, scale the loss, or use bfloat16 or float32."
        )


class LossNotAdditive(LossError, ValueError):
    """The gradient of a batch is not the weighted mean, or the declared sum, of the gradients of its parts.

    Attributes
    ----------
    difference : float
        ``‖g − combination of parts‖``, relative to the sizes of the parts; NaN where a part is not finite.
    """

    def __init__(self, difference: float, declared: str, cause: str) -> None:
        self.difference = difference
        by = f" by {difference:.1e} of its size" if math.isfinite(difference) else ""
        super().__init__(
            f"The gradient of a batch differs{by} from the {declared} of the gradients of its parts, which "
            f"cut batches, gradients of single examples and influence rest on. {cause}"
        )


class LossIgnoresBatch(LossError, ValueError):
    """Different examples give the same gradient, bit for bit, at several points."""

    def __init__(self) -> None:
        super().__init__(
            "The gradient is the same, bit for bit, for different examples, here and at random points; "
            "expected a loss of the batch. Compute it from the `batch` that is passed to it, not from data "
            "that the function closes over; a term of the parameters alone takes data=None."
        )


class WrongSecondDerivative(LossError, ArithmeticError):
    """The framework's second derivative of the loss is not the derivative of its first.

    Attributes
    ----------
    difference, allowed : float
        ``‖H u − D‖ / ‖H u‖`` for a random direction u and a difference D of gradients along it.
    """

    def __init__(self, difference: float, allowed: float, framework: str) -> None:
        self.difference, self.allowed = difference, allowed
        super().__init__(
            f"A product with the Hessian differs by {difference:.1e} of its size from differences of the "
            f"gradient along the same direction; at most {allowed:.0e} is expected. An operation inside the "
            f"loss has a wrong second derivative in {framework}: most often a custom function whose backward "
            "pass uses numbers that its forward pass saved, or a stopped gradient. Write the operation with "
            "the framework's own, or take differences of the gradient, which is right: backend='numdiff'. "
            "checks=False turns this check off."
        )


class NonDeterministicGradient(LossError, RuntimeError):
    """Two gradients of the same batch differ."""

    def __init__(self, difference: float, allowed: float) -> None:
        super().__init__(
            f"Two gradients of the same batch differ by {difference:.1e} of their size; at most "
            f"{allowed:.1e} is expected of a deterministic loss. The usual causes are dropout or batch norm "
            "in training mode: call model.eval() (torch), pass training=False (Keras), or fix the random key "
            "(JAX)."
        )


class ChangedInPlace(LossError, RuntimeError):
    """A tensor was written to between the forward pass that read it and the backward pass that needs it."""

    def __init__(self) -> None:
        super().__init__(
            "A tensor that the derivative needs was changed in place while it was computed; expected "
            "parameters and data that stay. Where another thread trains the model, compute before or after "
            "its steps; where the loss itself writes (x += y), let it make a new tensor (x = x + y)."
        )


# What a solver found


class SolverError(IhvpError, ArithmeticError):
    """A solve that did not reach its tolerance; ``.solution`` holds what was computed."""

    def __init__(self, message: str, solution: Solution) -> None:
        self.solution = solution
        Exception.__init__(self, message)


class NotConverged(SolverError):
    """The iteration limit was reached before the tolerance."""


class Unaffordable(NotConverged):
    """A solve was stopped early: at its pace it would take far more time than a solve is given.

    Attributes
    ----------
    products : float
        What it would take, in products with single vectors; infinite where no progress is seen.
    seconds : float
        The same in seconds.
    suggested_damping : float
        A total damping λ with which it takes some hundred iterations, as far as a few Lanczos steps can see.
    """

    def __init__(
        self, message: str, solution: Solution, products: float, seconds: float, suggested_damping: float
    ) -> None:
        self.products, self.seconds, self.suggested_damping = products, seconds, suggested_damping
        super().__init__(message, solution)


class Stagnated(SolverError):
    """The residual stopped falling above the tolerance: rounding or the backend's noise floor."""


class Singular(Stagnated):
    """The matrix is singular and the right-hand side has a part outside its range: no x solves the system."""


class NotSymmetricSystem(SolverError, NotSymmetric):
    """A solve failed, and a probe found its matrix not symmetric, which the method rests on."""

    def __init__(self, message: str, solution: Solution, left: float, right: float) -> None:
        self.left, self.right = left, right
        SolverError.__init__(self, message, solution)


class Diverged(SolverError):
    """A fixed-point iteration grows instead of contracting: its scale is too small for the curvature.

    Attributes
    ----------
    suggested_scale : float
        A scale that contracts as far as a few Lanczos steps can see.
    """

    def __init__(self, message: str, solution: Solution, suggested_scale: float) -> None:
        self.suggested_scale = suggested_scale
        super().__init__(message, solution)


class IndefiniteCurvature(SolverError):
    """A direction of negative or zero curvature was found where a definite matrix is needed.

    Attributes
    ----------
    curvature : float
        The Rayleigh quotient ``pᵀ(A + λI)p / pᵀp`` that was found.
    suggested_damping : float
        A total damping λ that makes the matrix positive definite as far as a few Lanczos steps can see.
    """

    def __init__(self, message: str, solution: Solution, curvature: float, suggested_damping: float) -> None:
        self.curvature, self.suggested_damping = curvature, suggested_damping
        super().__init__(message, solution)


class EigenpairsNotConverged(IhvpError, ArithmeticError):
    """Some eigenpairs did not reach the tolerance; ``.eigenpairs`` holds what was computed."""

    def __init__(self, message: str, eigenpairs: Eigenpairs) -> None:
        self.eigenpairs = eigenpairs
        super().__init__(message)


class UndefinedCovariance(IhvpError, ArithmeticError):
    """The matrix whose inverse a covariance is has no, or negative, curvature in some direction.

    Attributes
    ----------
    curvature : float
        The lowest eigenvalue, in parts of the largest.
    parts : dict of str to float
        The share of each block of parameters in the direction, by its name; together they are 1.
    """

    def __init__(
        self, matrix: str, curvature: float, parts: Mapping[str, tuple[float, list[int]]], negative: bool
    ) -> None:
        self.curvature = curvature
        self.parts = {name: share for name, (share, _) in parts.items()}
        advice = (
            "Train to a minimum, or take kind='opg'."
            if negative
            else "Leave out or fix what the data do not determine, such as one of collinear columns, or one "
            "class of all; for kind='opg' take more examples than parameters."
        )
        super().__init__(
            f"There is no covariance: the {matrix} has {'negative' if negative else 'no'} curvature "
            f"({curvature:.1e} of its largest) along a direction that consists of {_listed(parts)}. {advice}"
        )


# Pictures


class NothingToDraw(IhvpError, ValueError):
    """A picture was asked of an empty result."""

    def __init__(self, picture: str, found: str, expected: str) -> None:
        super().__init__(f"plot.{picture} found {found}; expected {expected}.")


class NotImages(IhvpError, ValueError):
    """Inputs are not images of one size, or fewer than are asked for."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(
            f"Found {found}; expected images as (N, height, width), or with 1, 3 or 4 channels as "
            f"(N, height, width, channels) or (N, channels, height, width). {advice}".rstrip()
        )


# Uncertainty


class IndefinitePosterior(IhvpError, ArithmeticError):
    """The precision of a posterior is singular or has negative eigenvalues: it is that of no normal.

    Attributes
    ----------
    suggested_factor : float
        With a prior precision of more than so many times the present one, it is positive definite.
    parts : dict of str to float
        The share of each block of parameters in the direction of the lowest eigenvalue; together they are 1.
    """

    def __init__(self, lowest: float, parts: Mapping[str, tuple[float, list[int]]]) -> None:
        self.suggested_factor = 1.0 - lowest
        self.parts = {name: share for name, (share, _) in parts.items()}
        super().__init__(
            f"The posterior's precision has the lowest eigenvalue {lowest:.3e}, in units of the prior's, "
            f"along a direction that consists of {_listed(parts)}; expected one above 0. Take "
            "ihvp.GaussNewton, KFAC or EKFAC, whose eigenvalues are not negative, "
            f"a prior precision above {self.suggested_factor:.3g} times this one, or train on to a minimum."
        )


class SamplesNotConverged(IhvpError, ArithmeticError):
    """Samples by Lanczos steps may be too far from those of the posterior."""

    def __init__(self, error: float, allowed: float, steps: int) -> None:
        self.error = error
        super().__init__(
            f"After {steps} Lanczos steps samples are within {error:.1e} of exact ones, relative to their "
            f"length; expected {allowed:.1e}. Allow more steps= or a larger rtol=, or take a curvature with "
            "its eigenvalues, whose samples are exact: ihvp.KFAC, EKFAC or FullRank."
        )


class NoEvidenceMaximum(IhvpError, ArithmeticError):
    """The search for the precisions of the prior did not end at a maximum of the evidence."""


# The command line


class ImportedObject(IhvpError, ImportError):
    """The command line names an object of a module that is not there, or is of another kind."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(
            f"Cannot use {place!r}: {reason}. Expected module:name, such as training:objective, where "
            "training is a Python file in the current folder or an installed module, which defines objective."
        )


# Results on disk


class StoreError(IhvpError, OSError):
    """A folder for results cannot be used: no room, no permission, other files in it."""


class StoreInUse(StoreError):
    """Another process writes to the folder."""

    def __init__(self, folder: str) -> None:
        super().__init__(
            f"Another run writes to {folder}; expected one at a time. Wait until it has ended, or pass "
            "another folder."
        )


class MissingFile(StoreError, FileNotFoundError):
    """A file of results is not there."""


class StoreMismatch(IhvpError, ValueError):
    """A folder holds the results of another run.

    Attributes
    ----------
    differing : dict
        What differs, with what was found and what was expected.
    """

    def __init__(self, folder: str, differing: Mapping[str, tuple[object, object]]) -> None:
        self.differing = dict(differing)
        listed = "; ".join(f"{name}: found {old}, expected {new}" for name, (old, new) in differing.items())
        super().__init__(
            f"{folder} holds the results of another run ({listed}). Pass another folder, or delete this one."
        )


def _restored(kind: type[IhvpError], *args: object) -> IhvpError:
    error = kind.__new__(kind, *args)
    Exception.__init__(error, *args)
    return error


def gigabytes(count: int) -> str:
    """A number of bytes as an error text gives it.

    >>> gigabytes(12_500_000_000)
    '12.5 GB'
    """
    return f"{count / 1e9:,.0f} GB" if count >= 1e11 else f"{count / 1e9:.3g} GB"


def _listed(parts: Mapping[str, tuple[float, list[int]]]) -> str:
    """The parameters that a direction consists of, by their shares."""
    return ", ".join(
        f"{name!r} {share:.0%} (entries {', '.join(map(str, entries))})"
        for name, (share, entries) in sorted(parts.items(), key=lambda item: -item[1][0])
        if entries
    )


def describe(value: Any) -> str:
    """The type of a value as an error text names it, with its shape where it has one.

    >>> import numpy
    >>> describe(numpy.zeros((2, 3)))
    'numpy.ndarray of shape (2, 3)'
    >>> describe(None)
    'None'
    """
    if value is None:
        return "None"
    kind = type(value)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"
    )
    shape = getattr(value, "shape", None)
    try:
        return name if shape is None else f"{name} of shape {tuple(shape)}"
    except (TypeError, ValueError):  # None, a method, or a shape that is not known yet
        return name


def is_traced(value: Any) -> bool:
    """Whether this stands for a value in a function that is traced, differentiated or mapped."""
    if is_tracer(value) or type(value).__name__ in ("SymbolicTensor", "KerasTensor"):
        return True
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return False
    return bool(
        torch._C._functorch.is_functorch_wrapped_tensor(value) or torch.compiler.is_dynamo_compiling()
    )


def is_tracer(value: Any) -> bool:
    """Whether this stands for a value of JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def instead(value: Any) -> str:
    """What to pass in the place of an object of a library that belongs to no backend.

    >>> instead([1.0])
    ''
    """
    if is_traced(value) or (isinstance(value, (list, tuple)) and any(map(is_traced, value))):
        return f" It is traced, inside {_TRACING}.{_OUTSIDE}"
    return _INSTEAD.get(type(value).__module__.partition(".")[0], "")


_TRACING = "jit, vmap, grad or scan of JAX, tf.function, torch.func or torch.compile"
_OUTSIDE = (
    " Call ihvp outside, and pass what it returns into the function; of several vectors pass a block (P, k). "
    "What jax.grad, backward() or a tape is to differentiate, once, is ihvp.differentiable_solve, or "
    "ihvp.InnerProblem(…).optimum; inside jit and vmap of JAX a product with ihvp.Hessian or "
    "ihvp.GaussNewton of parameters outside works."
)

_INSTEAD = {
    "pandas": " Of a pandas object pass its .to_numpy().",
    "sklearn": (
        " A scikit-learn estimator tells neither its loss nor its gradient: pass its fitted arrays, such as "
        "coef_, as params, with grad=…, the gradient of its loss."
    ),
}


@functools.cache
def _also(cls: Any, kind: Any) -> Any:
    """``cls`` as a class of errors of a built-in kind too."""
    if issubclass(cls, kind):
        return cls
    return type(cls.__name__, (cls, kind), {"__module__": cls.__module__, "_kinds": (cls, kind)})


def _failure(cls: Any, kind: Any, *args: str) -> Any:
    error = cls.__new__(cls) if kind is None else kind.__new__(_also(cls, kind))
    error.args = args
    return error


def _first(text: str) -> str:
    """The beginning of a text, as a sentence."""
    text = text.strip() if len(text) <= 400 else text[:400].rstrip() + " …"
    return text if text.endswith((".", "…")) else f"{text}."


def _shown(value: Any) -> str:
    """A value as its own text where that is short, else as its type."""
    try:
        text = repr(value)
    except Exception:  # whatever an object does wrong, it is the argument that is told of
        return describe(value)
    return text if len(text) <= 80 and "\n" not in text else describe(value)
