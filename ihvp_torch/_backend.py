"""The torch backend."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ihvp.backend import Batch, Loss, Matvec, OutputLoss, Params, Predict
from ihvp.errors import InvalidOption, WrongShape
from ihvp_torch._batch import Examples, to_device
from ihvp_torch._compile import CompiledCurvature, Compiler
from ihvp_torch._curvature import curvature
from ihvp_torch._derivatives import Function, flat_gradient, recording, scalar
from ihvp_torch._example_products import example_products
from ihvp_torch._fallback import FirstThatWorks, Memory
from ihvp_torch._gauss_newton import Outputs, gauss_newton, push_forward
from ihvp_torch._implicit import curvature_gradient, differentiable
from ihvp_torch._inputs import Inputs
from ihvp_torch._joint import joint
from ihvp_torch._layers import OpenedModel, cotangent_loss
from ihvp_torch._linearize import Linearization
from ihvp_torch._parameters import Parameters, parameters_of
from ihvp_torch._per_example import per_example_gradients
from ihvp_torch._processes import group
from ihvp_torch._reach import content_with_replica
from ihvp_torch._replay import Replayed
from ihvp_torch._restore import restore
from ihvp_torch._ski_rental import PATIENT, EagerFirst, compiler_is_there
from ihvp_torch._vector import join, multiply, split


class TorchBackend:
    """First and second derivatives with torch's autograd, on any of its devices.

    Parameters
    ----------
    params : nn.Module, or dict, list or tuple of tensors, optional
        Where they are, ``device`` is. Without them it is torch's default device.

        Of a module the parameters with ``requires_grad`` count, in the order of ``named_parameters``,
        tied ones once; the loss gets the module itself. Of containers, nested or not, every tensor counts.
    compile : bool or "auto"
        Whether products with the Hessian are compiled, which takes 5 to 40 seconds for each loss, shape of a
        batch and number of vectors. Products of small problems then take a quarter of the time and more. It
        needs a C++ compiler, or triton on a GPU.

        "auto" compiles products with data that stays in memory, on a processor, when eager ones have taken as
        long as a compilation takes. A program is used where it is faster, and where its product is that of
        the operator's own first graph; otherwise the logger ``"ihvp"`` says why not, at the level INFO.

        With True the loss is traced once, as with ``jax.jit``: tensors are read at every product, but numbers
        and other objects that it finds elsewhere than in parameters and batch stay as they were. Where it
        branches on values, or leaves torch, it is not compiled, and the logger says so. Define it once: a new
        function object, as a lambda in a loop, is another loss.

    Raises
    ------
    ihvp.errors.InvalidOption
        By another value of ``compile``, and with True by the first product where there is no compiler.

    Notes
    -----
    The loss sees the parameters as aliases of the same storage: nothing is copied, and ``.grad`` stays
    as it is. A module is not touched: the loss is given a replica of it, with its attributes and clones of
    its buffers. Where that will not do (scripted or compiled modules, hooks, a loss that reaches the module
    around its argument), the module itself holds the aliases for the time of a call, one thread at a time.
    Batches may hold numpy arrays and tensors on the host, which go to the parameters' device.

    A second derivative is computed in reverse over reverse mode, and where an operation lacks it in
    forward over reverse mode, and then the same two with fused attention, cuDNN's recurrent layers
    and compiled functions replaced by their plain forms. What worked for a loss is tried first the next time.
    A ``torch.autograd.Function`` whose backward leaves torch (through numpy, say) must be marked
    ``once_differentiable``; unmarked, torch takes its result for a constant.

    Examples
    --------
    >>> import torch
    >>> def loss(w, batch):
    ...     return (1 - 2 * w["a"] * w["b"]) ** 2
    >>> w = {"a": torch.tensor(1.0), "b": torch.tensor(1 / 3)}
    >>> backend = TorchBackend(w)
    >>> backend.hvp(loss, w, None, torch.tensor([1.0, 1.0]))
    tensor([2.2222, 9.3333])
    """

    def __init__(
        self,
        params: Params = None,
        *,
        compile: bool | Literal["auto"] = "auto",  # noqa: A002 - torch's own word
    ) -> None:
        if compile not in (True, False, "auto"):
            raise InvalidOption("compile", compile, 'True, False or "auto"')
        place = torch.empty(0) if params is None else parameters_of(params).tensors[0]
        self.device = str(place.device)
        self._hessian_ways, self._jacobian_ways = Memory(), Memory()
        self._compiler = Compiler() if compile is True else None
        self._patient = compile == "auto"

    def flatten(self, params: Params) -> Tensor:
        """All parameters as a new vector ``(P,)`` of their widest dtype."""
        tensors = [tensor.detach() for tensor in parameters_of(params).tensors]
        return join(tensors, tensors)

    def unflatten(self, vector: Tensor, like: Params) -> Params:
        """The parts of ``vector`` in the structure, shapes and dtypes of ``like``: views where dtypes agree.

        For a module it is a dict by name that remembers the module, so that the methods of this class
        take it as ``params`` and evaluate the module at these values.

        Raises
        ------
        ihvp.errors.WrongShape
            The vector is not ``(P,)``.
        """
        parameters = parameters_of(like)
        size = sum(tensor.numel() for tensor in parameters.tensors)
        if vector.shape != (size,):
            raise WrongShape(vector.shape, size)
        return parameters.assemble(split(vector.detach(), parameters.tensors))

    @recording
    def grad(self, loss: Loss, params: Params, batch: Batch) -> Tensor:
        """The gradient ``∇ loss(params, batch)``, ``(P,)``."""
        return flat_gradient(_function(loss, *_read(params, batch)))

    @recording
    def hvp(self, loss: Loss, params: Params, batch: Batch, v: Tensor) -> Tensor:
        """The product ``∇² loss(params, batch) · v`` for ``v`` of shape ``(P,)`` or ``(P, k)``."""
        product = self._curvature(loss, params, batch)
        return multiply(product, v)

    @recording
    def linearize(self, loss: Loss, params: Params, batch: Batch) -> Matvec:
        """The map ``v ↦ ∇² loss(params, batch) · v``, its forward and first backward pass done once.

        It follows parameters that are replaced or changed in place, unless through ``tensor.data``.
        """
        return Linearization(partial(self._curvature, loss, params, batch), params, batch)

    def batch_products(
        self, loss: Loss | OutputLoss, params: Params, predict: Predict | None = None
    ) -> Callable[[Batch, Tensor], Tensor]:
        """:meth:`hvp` at ``params``, or with ``predict`` :meth:`gnvp`, for many batches of the same shapes.

        What is done for one of them is recorded, and done again for the others where that is right.
        """
        product = (
            partial(self.hvp, loss, params) if predict is None else partial(self.gnvp, predict, loss, params)
        )
        # A program is faster where it was asked for.
        return product if self._compiler is not None and predict is None else Replayed(product, params)

    @recording
    def per_example_grads(self, loss: Loss, params: Params, batch: Batch) -> Tensor:
        """The gradients of the batch's examples, ``(B, P)``: row i is ``grad`` of example i alone."""
        parameters, batch = _read(params, batch)
        examples = Examples(batch)
        return per_example_gradients(lambda part: _function(loss, parameters, part), examples)

    @recording
    def gnvp(self, predict: Predict, loss: OutputLoss, params: Params, batch: Batch, v: Tensor) -> Tensor:
        """``Jᵀ (∇²_outputs loss) J v`` with ``J`` the Jacobian of ``predict`` by the parameters.

        ``predict`` returns a tensor, or a dict, list or tuple of tensors; ``v`` is ``(P,)`` or ``(P, k)``.
        """
        return multiply(self._gauss_newton(predict, loss, params, batch), v)

    @recording
    def linearize_gauss_newton(
        self, predict: Predict, loss: OutputLoss, params: Params, batch: Batch
    ) -> Matvec:
        """The map ``v ↦ gnvp(predict, loss, params, batch, v)``, its passes on the way to v done once.

        It follows parameters as that of :meth:`linearize` does.
        """
        return Linearization(partial(self._gauss_newton, predict, loss, params, batch), params, batch)

    @recording
    def push_forward(self, predict: Predict, params: Params, batch: Batch, v: Tensor) -> list[Tensor]:
        """``J v`` for each floating tensor that ``predict`` returns: ``(*shape)``, or ``(*shape, k)``."""
        prediction = _prediction(predict, *_read(params, batch))
        return push_forward(prediction, v, predict, self._jacobian_ways)

    @recording
    def value(self, loss: Loss, params: Params, batch: Batch) -> Any:
        """``loss(params, batch)`` as the loss returns it, the parameters bound as for a gradient."""
        parameters, batch = _read(params, batch)
        function = _function(loss, parameters, batch)
        # A loss may take gradients by the parameters itself, so they are leaves here too.
        evaluate = content_with_replica(loss, parameters)
        value = function.bind(function.leaves())(lambda structure: evaluate(structure, batch))
        return value.detach() if isinstance(value, Tensor) else value

    @recording
    def example_products(self, loss: Loss, params: Params, batch: Batch, v: Tensor) -> Tensor:
        """``∇C_i · v`` for each of the batch's examples, ``(B,)`` or ``(B, k)``, in forward mode."""
        parameters, batch = _read(params, batch)
        examples = Examples(batch)
        return example_products(lambda part: _function(loss, parameters, part), examples, v)

    @recording
    def input_derivatives(self, loss: Loss, params: Params, batch: Batch, v: Tensor) -> Batch:
        """The derivatives of ``∇ loss(params, batch) · v`` by the batch's floating tensors, None of the rest.

        They are the part that belongs to the tensors of ``∇² loss · (v, 0)``, with the loss as a function of
        the parameters and them together. For ``v`` of shape ``(P, k)`` they have a leading axis k.
        """
        parameters, batch = _read(params, batch)
        inputs = Inputs(batch)
        function = inputs.jointly(content_with_replica(loss, parameters), parameters)
        product = curvature(function, loss, self._hessian_ways)
        joint = torch.cat([v, v.new_zeros(inputs.size, *v.shape[1:])])
        return inputs.assemble(multiply(product, joint)[len(v) :].movedim(0, -1))

    @recording
    def open(self, predict: Predict, params: Params, batch: Batch) -> OpenedModel:
        """A forward pass whose linear layers are found in the graph that autograd recorded.

        Products with matrices, convolutions and look-ups of eager code are seen, whatever module or function
        they are in; layers inside compiled, scripted and hand-written functions are not.
        """
        parameters, batch = _read(params, batch)
        prediction = _prediction(predict, parameters, batch)
        return OpenedModel(prediction, parameters.names, batch, self._hessian_ways)

    def cotangent_loss(self, predict: Predict) -> Loss:
        """The loss ``⟨outputs, cotangents⟩`` of a batch ``(batch, cotangents)``."""
        return cotangent_loss(predict)

    def restore(self, checkpoint: Any, params: Params) -> Params:
        """The parameters that a checkpoint holds, in the structure of ``params``."""
        return restore(checkpoint, params)

    def joint(self, params: Params, hyper: Any) -> Params:
        """Both in one structure, with the framework's arrays in the place of numbers and numpy arrays."""
        return joint(params, hyper)

    def differentiable(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """The outputs of ``function(*inputs)`` with the derivatives that it says."""
        return differentiable(function, *inputs)

    @recording
    def curvature_gradient(self, loss: Loss, params: Params, batch: Batch, x: Tensor, y: Tensor) -> Tensor:
        """The gradient ``∇ (yᵀ ∇² loss x)``, ``(P,)``."""
        return curvature_gradient(_function(loss, *_read(params, batch)), x, y)

    def blocks(self, params: Params) -> dict[str, slice]:
        """The part of the flat vector that each tensor is, by its name in the module or its path."""
        parameters = parameters_of(params)
        stops = list(itertools.accumulate(tensor.numel() for tensor in parameters.tensors))
        return dict(zip(parameters.names, map(slice, [0, *stops], stops), strict=False))

    def reduce(self, vector: Tensor) -> Tensor:
        """The sum of ``vector`` over the processes of ``torch.distributed``, or itself without them."""
        processes = group()
        if processes is None or processes.size == 1:
            return vector
        # Communication needs contiguous memory, which a block has by columns.
        total = (vector.T if vector.ndim == 2 else vector).clone(memory_format=torch.contiguous_format)
        processes.sum(total)
        return total.T if vector.ndim == 2 else total

    def place(self) -> tuple[int, int]:
        """The rank in ``torch.distributed`` and the number of its processes; 0 and 1 without them."""
        processes = group()
        return (0, 1) if processes is None else (processes.rank, processes.size)

    def tell(self, error: BaseException) -> None:
        """Let the processes that wait for this one know that it does not come."""
        processes = group()
        if processes is not None:
            processes.tell(error)

    def _curvature(
        self, loss: Loss, params: Params, batch: Batch
    ) -> FirstThatWorks | CompiledCurvature | EagerFirst:
        parameters, batch = _read(params, batch)
        ordinary = partial(curvature, key=loss, memory=self._hessian_ways)
        if self._compiler is not None:
            compiled = self._compiler.curvature(loss, parameters, batch, ordinary)
            if compiled is not None:
                return compiled
        eager = ordinary(_function(loss, parameters, batch))
        on_host = parameters.tensors[0].device.type == "cpu"
        if not (self._patient and on_host and compiler_is_there()):
            return eager
        return EagerFirst(eager, partial(PATIENT.curvature, loss, parameters, batch, ordinary), PATIENT)

    def _gauss_newton(
        self, predict: Predict, loss: OutputLoss, params: Params, batch: Batch
    ) -> FirstThatWorks:
        parameters, batch = _read(params, batch)

        def output_curvature(outputs: Outputs) -> FirstThatWorks:
            function = Function(outputs.tensors, outputs.bind, lambda values: scalar(loss(values, batch)))
            return curvature(function, loss, self._hessian_ways)

        prediction = _prediction(predict, parameters, batch)
        return gauss_newton(prediction, output_curvature, predict, self._jacobian_ways)


def _read(params: Params, batch: Batch) -> tuple[Parameters, Batch]:
    """The parameters, and the batch on their device."""
    parameters = parameters_of(params)
    return parameters, to_device(batch, parameters.tensors[0].device)


def _prediction(predict: Predict, parameters: Parameters, batch: Batch) -> Function:
    predicted = content_with_replica(predict, parameters)
    return Function(parameters.tensors, parameters.bind, lambda structure: predicted(structure, batch), batch)


def _function(loss: Loss, parameters: Parameters, batch: Batch) -> Function:
    loss = content_with_replica(loss, parameters)
    return Function(
        parameters.tensors, parameters.bind, lambda structure: scalar(loss(structure, batch)), batch
    )
