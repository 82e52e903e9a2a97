"""What a framework provides: the ``CurvatureBackend`` protocol, its capabilities, and a plugin's record.

A backend is five members. Everything else in the library (operators, solvers, eigenvalues, influence)
is written once on top of them. What only some frameworks can do is a small ``Supports…`` protocol of its
own; the core finds it with ``isinstance`` and otherwise falls back to the five members.

Vectors are ``(P,)``, blocks of k vectors ``(P, k)``, in the framework's own array type where that type
follows the Python Array API standard, and in numpy's where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import array_api_compat
import numpy as np

from ihvp.layers import Layer

Vector: TypeAlias = Any
"""A 1-D array ``(P,)`` or a block ``(P, k)`` in the backend's array type."""
Params: TypeAlias = Any
"""The parameters in the framework's own structure: a module, a pytree, a list of variables …"""
Batch: TypeAlias = Any
"""What the data yields and the loss takes: a tuple or dict of arrays, or None."""
Loss: TypeAlias = Callable[[Params, Batch], Any]
"""``loss(params, batch)``: one scalar, the mean (or sum) over the batch."""
Predict: TypeAlias = Callable[[Params, Batch], Any]
"""``predict(params, batch)``: the outputs of a model, in any structure."""
OutputLoss: TypeAlias = Callable[[Any, Batch], Any]
"""``loss(outputs, batch)``: one scalar, the mean (or sum) over the batch."""
Matvec: TypeAlias = Callable[[Vector], Vector]
"""A linear map of vectors ``(P,)`` and blocks ``(P, k)``."""


@runtime_checkable
class CurvatureBackend(Protocol):
    """First and second derivatives of a loss in one framework.

    Attributes
    ----------
    device : str
        Where the parameters live: ``"cpu"`` for the host's memory, else kind and number, as ``"cuda:0"``.
        Of several devices, kind and mesh, as ``"cuda:mesh(data=8)"``.

    Notes
    -----
    A batch comes as the data yields it, numpy arrays included: the backend turns it into what its framework
    computes with, on ``device``, and neither writes to it nor keeps its values for another call.

    ``params`` is the user's own structure or a value that ``unflatten`` returned; both must work in
    every method. No method changes the parameters: they are bit for bit the same after a call,
    also after one that raised. What a method returns is the caller's own, to write into if it likes.
    """

    device: str

    def flatten(self, params: Params) -> Vector:
        """All parameters as one new vector ``(P,)`` on ``device``, in the dtype that they promote to.

        Half precision promotes to float32, in which all vectors then are: ``v``, and what methods return.

        The order of the arrays is the framework's, the same in all methods; each goes in row by row.

        Raises
        ------
        ihvp.errors.ParameterError
            The container is not one the backend knows, or a parameter is not of a real floating dtype.
        """

    def unflatten(self, vector: Vector, like: Params) -> Params:
        """The exact inverse of ``flatten``, in the structure, shapes and dtypes of ``like``."""

    def grad(self, loss: Loss, params: Params, batch: Batch) -> Vector:
        """The gradient ``∇ loss(params, batch)``, ``(P,)``.

        Raises
        ------
        ihvp.errors.LossNotScalar
            The loss is not one real number.
        ihvp.errors.LossIndependentOfParameters
            It does not depend on them.
        """

    def hvp(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> Vector:
        """The product ``∇² loss(params, batch) · v`` for ``v`` of shape ``(P,)`` or ``(P, k)``.

        Raises
        ------
        ihvp.errors.UnsupportedOperation
            An operation has no second derivative. And those of :meth:`grad`.
        """


@runtime_checkable
class SupportsLinearize(Protocol):
    """The gradient can be linearised once and applied to many vectors."""

    def linearize(self, loss: Loss, params: Params, batch: Batch) -> Matvec:
        """The map ``v ↦ ∇² loss(params, batch) · v``, its forward and first backward pass done once.

        The map reflects the parameters at the time of the product: if the framework lets them change
        in place, it notices and linearises again.

        It may have an attribute ``nbytes``, the memory in bytes that it keeps beside the parameters and the
        batch. An operator keeps as many maps as its memory budget allows; of maps that do not tell it keeps
        one. A map may also be :class:`Fusible`.
        """


@runtime_checkable
class Fusible(Protocol):
    """A map that :meth:`SupportsLinearize.linearize` gives, where more can be compiled with its product."""

    def then(self, function: Callable[..., Any], v: Vector, *arguments: Any, fixed: Any) -> Any:
        """``function(product, v, *arguments, fixed)`` of the product with ``v``, compiled with it as one.

        ``function`` and ``fixed`` can be hashed, and a program is kept for each pair of them.
        """


@runtime_checkable
class SupportsUniformBatches(Protocol):
    """Many batches of one size go through one compiled loop."""

    def hvp_sum(self, loss: Loss, params: Params, batch: Batch, v: Vector, size: int) -> Vector:
        """The sum of ``∇² loss(params, piece) · v`` over the pieces of ``size`` rows of ``batch``.

        A piece has rows ``i·size : (i+1)·size`` of every array, and everything else that ``batch`` has. Rows
        beyond the last whole piece are left out. The arrays hold numbers; ``v`` is ``(P,)`` or ``(P, k)``.
        """


@runtime_checkable
class SupportsBatchProducts(Protocol):
    """Products at many batches of the same shapes take less than one by one."""

    def batch_products(
        self, loss: Loss | OutputLoss, params: Params, predict: Predict | None = None
    ) -> Callable[[Batch, Vector], Vector]:
        """The map ``(batch, v) ↦ ∇² loss(params, batch) · v`` at parameters that stay as they are.

        With ``predict`` its products are those of :meth:`SupportsGaussNewton.gnvp`. Each batch comes once.
        The map may be :class:`FusibleAtBatches`.
        """


@runtime_checkable
class FusibleAtBatches(Protocol):
    """A map that :meth:`SupportsBatchProducts.batch_products` gives, where more can be compiled with it."""

    def then(self, function: Callable[..., Any], batch: Batch, v: Vector, *arguments: Any, fixed: Any) -> Any:
        """:meth:`Fusible.then` of the product at a batch."""


@runtime_checkable
class SupportsPerExampleGrads(Protocol):
    """The gradients of single examples can be computed together."""

    def per_example_grads(self, loss: Loss, params: Params, batch: Batch) -> Vector:
        """The gradients of the batch's examples, ``(B, P)``: row i is ``grad`` of example i alone.

        Raises
        ------
        ihvp.errors.DataError
            The batch's arrays do not agree on a number of examples.
        """


@runtime_checkable
class SupportsGaussNewton(Protocol):
    """Products with the generalised Gauss–Newton matrix."""

    def gnvp(self, predict: Predict, loss: OutputLoss, params: Params, batch: Batch, v: Vector) -> Vector:
        """``Jᵀ (∇²_outputs loss) J v`` with ``J`` the Jacobian of ``predict`` by the parameters."""


@runtime_checkable
class SupportsLinearizeGaussNewton(Protocol):
    """The outputs of a model can be linearised once, and their curvature with them."""

    def linearize_gauss_newton(
        self, predict: Predict, loss: OutputLoss, params: Params, batch: Batch
    ) -> Matvec:
        """The map ``v ↦ gnvp(predict, loss, params, batch, v)``.

        It is one like that of :meth:`SupportsLinearize.linearize`.
        """


@runtime_checkable
class SupportsReduce(Protocol):
    """The data is spread over processes."""

    def reduce(self, vector: Vector) -> Vector:
        """The sum of ``vector`` over all processes."""

    def place(self) -> tuple[int, int]:
        """The number of this process, from 0 on, and how many there are; told without asking the others."""

    def tell(self, error: BaseException) -> None:
        """Let the others know that this process failed: what waits for it in ``reduce`` is to raise, too."""


@runtime_checkable
class SupportsProductError(Protocol):
    """Products are approximate, and the backend can tell by how much."""

    def product_error(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> float:
        """An estimate of ``‖computed product − exact product‖`` for ``v`` of shape ``(P,)``."""


@runtime_checkable
class SupportsValue(Protocol):
    """The loss can be evaluated in the framework's own way: data moved, state put back."""

    def value(self, loss: Loss, params: Params, batch: Batch) -> Any:
        """``loss(params, batch)`` as the loss returns it; the core turns it into a float and checks it."""


@runtime_checkable
class SupportsExampleProducts(Protocol):
    """Directional derivatives of single losses, without the gradients of the examples."""

    def example_products(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> Vector:
        """``∇C_i · v`` for every example i of the batch, where ``C_i`` is the loss on it alone.

        ``(B,)`` for ``v`` of shape ``(P,)``, ``(B, k)`` for ``(P, k)``.
        """


@runtime_checkable
class SupportsInputDerivatives(Protocol):
    """The gradient can be differentiated by the data."""

    def input_derivatives(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> Batch:
        """The derivatives of ``∇ loss(params, batch) · v`` by the arrays of the batch.

        Returns
        -------
        Batch
            The structure of ``batch``: in the place of an array of real floating numbers with at least one
            axis an array of its shape, with a leading axis k for ``v`` of shape ``(P, k)``; in the place of
            everything else None.
        """


class OpenModel(Protocol):
    """One forward pass of a model over a batch of B examples, kept for derivatives by what its layers give.

    Attributes
    ----------
    shapes : sequence of tuple of int
        The shapes ``(B, …)`` of the arrays that the model returned. All their entries, array after array and
        row by row, are the F outputs.
    layers : sequence of Layer
        Those that were seen. A layer that is used several times appears once, its uses side by side in S.
    inputs : sequence of Vector
        What goes into each layer: ``(B, S, groups, d_in)``, or indices ``(B, S)`` where it is ``one_hot``.
        S counts what shares a layer's weights: positions, tokens, uses. Each layer has its own.
    """

    shapes: Sequence[tuple[int, ...]]
    layers: Sequence[Layer]
    inputs: Sequence[Vector]

    def outputs(self) -> Vector:
        """The F outputs, ``(F,)``."""

    def pull_back(self, cotangents: Vector) -> Sequence[Vector]:
        """The derivatives of ``⟨cotangents, outputs⟩`` by what layers give, ``(V, B, S, groups, d_out)``.

        ``cotangents`` are ``(V, F)``. It may be called often.
        """

    def output_gradient(self, loss: OutputLoss) -> Vector:
        """The gradient of ``loss(outputs, batch)`` by the outputs, ``(F,)``."""

    def output_hvp(self, loss: OutputLoss, v: Vector) -> Vector:
        """``∇²_outputs loss · v`` for ``v`` of shape ``(F, k)``."""


@runtime_checkable
class SupportsLayers(Protocol):
    """A model can be opened at its linear layers, which Kronecker factors are made of."""

    def open(self, predict: Predict, params: Params, batch: Batch) -> OpenModel:
        """A forward pass of ``predict(params, batch)`` with the inputs of each layer, to be pulled back.

        Layers that it does not see are left out. The core compares what is seen with :meth:`cotangent_loss`,
        and treats the parameters of a layer that is incomplete as those without a layer.
        """

    def cotangent_loss(self, predict: Predict) -> Loss:
        """The loss ``⟨outputs, cotangents⟩`` of a batch ``(batch, cotangents)``, summed over the examples.

        ``cotangents`` is a list of arrays in the shapes of those that ``predict`` returns, in their order.
        """


@runtime_checkable
class SupportsBlocks(Protocol):
    """The arrays that the parameters consist of have names."""

    def blocks(self, params: Params) -> Mapping[str, slice]:
        """The part of the flat vector that each array of the parameters is, by its name in the framework."""


@runtime_checkable
class SupportsCheckpoints(Protocol):
    """Parameters can be read from what a framework saves."""

    def restore(self, checkpoint: Any, params: Params) -> Params:
        """The parameters that a checkpoint holds, in the structure of ``params``, which stay as they are.

        ``checkpoint`` is a path, parameters in a structure of the framework, or a mapping of names to arrays.

        Raises
        ------
        ihvp.errors.ParameterError
            It is that of another architecture.
        ihvp.errors.DataError
            The file holds no parameters, or code.
        """


@runtime_checkable
class SupportsPushForward(Protocol):
    """Products with the Jacobian of a model's outputs."""

    def push_forward(self, predict: Predict, params: Params, batch: Batch, v: Vector) -> Sequence[Vector]:
        """The derivatives ``J v`` of what ``predict(params, batch)`` returns by the parameters, along ``v``.

        An array for each of its arrays of real floating numbers, in their order and in the dtype of vectors:
        of its shape for ``v`` of shape ``(P,)``, and with a last axis k for ``(P, k)``.
        """


@runtime_checkable
class SupportsImplicit(Protocol):
    """Derivatives through a solve, and through an optimum, are part of the framework's own."""

    def joint(self, params: Params, hyper: Any) -> Params:
        """One structure ``both``, in which a loss is differentiated by the parameters and by other arrays.

        ``both[0]`` and ``both[1]`` are the two in their own structures, numbers in ``hyper`` as arrays, and
        vectors have the entries of the parameters first. ``unflatten`` also takes each of them alone.
        """

    def differentiable(self, function: Callable[..., tuple[Any, Callable[[Any], Any]]], *inputs: Any) -> Any:
        """``outputs``, whose derivatives by the inputs are those that ``function`` says.

        ``function(*inputs)`` returns ``outputs, pull_back``, where ``pull_back(cotangents)`` gives a
        structure for each input like that of ``unflatten``, or None where the outputs do not depend on it.
        Inputs are parameters, arrays and numbers, outputs arrays. TracedValue says that an input is traced.
        """

    def curvature_gradient(self, loss: Loss, params: Params, batch: Batch, x: Vector, y: Vector) -> Vector:
        """The gradient ``∇ (yᵀ ∇² loss(params, batch) x)``, ``(P,)``, for ``x`` and ``y`` ``(P,)``."""


CAPABILITIES: dict[str, type] = {
    "linearize": SupportsLinearize,
    "uniform_batches": SupportsUniformBatches,
    "batch_products": SupportsBatchProducts,
    "per_example_grads": SupportsPerExampleGrads,
    "gauss_newton": SupportsGaussNewton,
    "linearize_gauss_newton": SupportsLinearizeGaussNewton,
    "reduce": SupportsReduce,
    "product_error": SupportsProductError,
    "value": SupportsValue,
    "example_products": SupportsExampleProducts,
    "input_derivatives": SupportsInputDerivatives,
    "layers": SupportsLayers,
    "blocks": SupportsBlocks,
    "checkpoints": SupportsCheckpoints,
    "push_forward": SupportsPushForward,
    "implicit": SupportsImplicit,
}
"""The optional capabilities by the name under which a plugin declares them."""


@dataclass(frozen=True)
class GradientFunction:
    """A loss that is known by its gradient, as ``Objective(grad=…)`` makes it.

    Backends that differentiate gradients (``differentiates="gradient"``) find it in the place of the loss.

    Parameters
    ----------
    grad : callable
        ``grad(params, batch)``: the gradient, in the structure of the parameters or flat.
    loss : callable, optional
        ``loss(params, batch)``: the value, where it is known.
    """

    grad: Callable[[Params, Batch], Any]
    loss: Loss | None = None


@dataclass(frozen=True)
class Dialect:
    """How one text of a loss runs in several frameworks; for the contract suite, the demo, the experiments.

    Parameters
    ----------
    xp : module
        numpy-like functions on the framework's arrays, differentiable: at least
        ``exp, log, tanh, sum, mean, max, reshape, matmul, asarray``.
    parameters : callable
        Turns ``{name: numpy array}`` into trainable parameters that a loss can index by the same names.
    """

    xp: Any
    parameters: Callable[[Mapping[str, np.ndarray]], Params]


@dataclass(frozen=True, kw_only=True)
class BackendPlugin:
    """What a plugin says of itself, without importing its framework.

    Parameters
    ----------
    name : str
        The name for ``ihvp.use(name)``; the same as the entry point's.
    framework : str
        The import name of the framework.
    install : str
        The command that installs it.
    factory : callable
        ``factory(params=None, **options) -> CurvatureBackend``, on the device of ``params``; without them,
        as ``ihvp backends`` calls it, on the framework's default device. This is the one place that imports
        the framework. If ``differentiates="gradient"`` it also takes
        ``inner=``, the backend of the parameters' own framework (None for numpy arrays).
    types : tuple of str
        Top-level packages whose classes the parameters are made of, such as ``("jax", "jaxlib")``.
    capabilities : frozenset of str
        Keys of ``CAPABILITIES`` that the backend implements; the contract suite compares.
    differentiates : {"loss", "gradient"}
        Whether the backend takes a loss, or the gradient of one (finite differences).
    dialect : callable, optional
        ``dialect() -> Dialect``; needed by the contract suite and by ``ihvp demo``.
    connected : callable, optional
        ``connected(device)``, a context in which the processes that the framework's launcher has started are
        connected, for ``ihvp influence``; their backends say so in ``place()``.
    environment : mapping of str to str
        Variables with which ``ihvp contract`` runs the suite, where the framework needs one to keep float64.
    """

    name: str
    framework: str
    install: str
    factory: Callable[..., CurvatureBackend]
    types: tuple[str, ...]
    capabilities: frozenset[str] = field(default_factory=frozenset)
    differentiates: Literal["loss", "gradient"] = "loss"
    dialect: Callable[[], Dialect] | None = None
    connected: Callable[[str], AbstractContextManager[None]] | None = None
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)


def coarsest_eps(backend: CurvatureBackend, params: Params) -> float:
    """The machine epsilon of the coarsest parameter: 2⁻⁷ for bfloat16, 2⁻¹⁰ for float16, 2⁻²³ for float32."""
    x = backend.flatten(params)
    xp: Any = array_api_compat.array_namespace(x)
    # In a dtype of machine epsilon ε, three times what 4/3 is rounded to differs from 4 by ε.
    thirds = backend.unflatten(xp.full_like(x, 4 / 3), params)
    rounded = float(xp.max(xp.abs(3 * backend.flatten(thirds) - 4)))
    return max(rounded, float(xp.finfo(x.dtype).eps))


def capabilities_of(backend: CurvatureBackend) -> frozenset[str]:
    """The names of the optional capabilities that ``backend`` implements."""
    return frozenset(name for name, protocol in CAPABILITIES.items() if isinstance(backend, protocol))
