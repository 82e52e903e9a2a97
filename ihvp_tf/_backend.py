"""``TensorFlowBackend``: derivatives of a loss over variables, compiled by ``tf.function``."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from ihvp.backend import Batch, Loss, OutputLoss, Params, Predict, Vector
from ihvp.errors import WrongShape
from ihvp_tf import _derivatives, _loop, _parameters
from ihvp_tf._graph import Graph
from ihvp_tf._inputs import in_place_of_inputs, inputs
from ihvp_tf._open import CotangentLoss, OpenModel
from ihvp_tf._restore import restore
from ihvp_tf._sharing import shared_graph

_MOST_GRAPHS = 64


class TensorFlowBackend:
    """First and second derivatives of a loss over a Keras model or a structure of ``tf.Variable``.

    Vectors are numpy arrays on the host, wherever the variables are: TensorFlow's tensors do not follow the
    Python Array API. Losses are compiled: traced once for each structure, dtype and rank of the batch, and
    once more when a dimension of the batch changes. Python values that a loss closes over are constants of
    the trace. The graphs go with their backend, unless other backends can use them: those of a plain function
    over a list, tuple or dict of variables, while both live and nothing that the function sees has changed.

    Parameters
    ----------
    params : keras.Model, keras.Layer, tf.Module, or list, tuple or dict of tf.Variable; optional
        Determines the device; without it, where TensorFlow puts new variables.

    Raises
    ------
    ihvp.errors.ParameterError
        The container is another one, it has no floating variable, the variables are on several devices, or
        the call is made inside a strategy of ``tf.distribute``.

    Notes
    -----
    A model's parameters are its ``trainable_variables``, in that order; a structure's are in the order of
    ``tf.nest``, which sorts the keys of a dict. Variables of several dtypes are promoted to one by
    ``flatten`` and cast back by ``unflatten``. What a loss changes as it runs (moving averages, seeds) is put
    back.

    Examples
    --------
    >>> import numpy as np
    >>> import tensorflow as tf
    >>> def loss(w, batch):
    ...     return (1 - 2 * w[0] * w[1]) ** 2
    >>> w = [tf.Variable(1.0), tf.Variable(0.5)]
    >>> TensorFlowBackend(w).hvp(loss, w, None, np.ones(2, np.float32)).tolist()
    [6.0, 12.0]
    """

    device: str

    def __init__(self, params: Params = None) -> None:
        self.device = _parameters.device_of([] if params is None else _parameters.variables_of(params))
        self._graphs: OrderedDict[Hashable, tuple[Graph, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # Graphs belong to their process; another one traces again.
        return {**self.__dict__, "_graphs": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def flatten(self, params: Params) -> Vector:
        """All parameters as one numpy vector ``(P,)``; also of arrays in the parameters' structure."""
        return _parameters.flatten(params)

    def unflatten(self, vector: Vector, like: Params) -> Params:
        """The exact inverse of ``flatten``: a list for a model, else the structure of ``like``.

        Where ``like`` holds variables, the result stands for them in ``grad`` and ``hvp``: these evaluate the
        loss at the values, and leave the variables as they are.
        """
        return _parameters.unflatten(vector, like)

    def grad(self, loss: Loss, params: Params, batch: Batch) -> Vector:
        """The gradient ``∇ loss(params, batch)``, ``(P,)``."""
        return self._run(_derivatives.gradient, (loss,), params, batch)

    def hvp(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> Vector:
        """The product ``∇² loss(params, batch) · v`` for ``v`` of shape ``(P,)`` or ``(P, k)``."""
        return self._run(_derivatives.hessian_product, (loss,), params, batch, v)

    def hvp_sum(self, loss: Loss, params: Params, batch: Batch, v: Vector, size: int) -> Vector:
        """The sum of the products of all whole pieces of ``size`` rows of ``batch``, in one loop."""
        return self._run(_loop.hessian_sum(size), (loss,), params, batch, v)

    def gnvp(self, predict: Predict, loss: OutputLoss, params: Params, batch: Batch, v: Vector) -> Vector:
        """``Jᵀ (∇²_outputs loss) J v`` with ``J`` the Jacobian of ``predict``; outputs may be nested."""
        return self._run(_derivatives.gauss_newton_product, (predict, loss), params, batch, v)

    def push_forward(self, predict: Predict, params: Params, batch: Batch, v: Vector) -> list[Vector]:
        """``J v`` for each array that ``predict`` returns: ``(*shape)``, or ``(*shape, k)``."""
        parts = self._run(_derivatives.jacobian_product, (predict,), params, (batch, _rows(v, params)))
        return [part[0] if v.ndim == 1 else np.moveaxis(part, 0, -1) for part in parts]

    def per_example_grads(self, loss: Loss, params: Params, batch: Batch) -> Vector:
        """The gradients of the batch's examples, ``(B, P)``; an example keeps a leading dimension of 1."""
        return self._run(_derivatives.per_example_gradients, (loss,), params, batch)

    def value(self, loss: Loss, params: Params, batch: Batch) -> Any:
        """``loss(params, batch)``, compiled; what it changes as it runs is put back."""
        return self._run(_derivatives.value, (loss,), params, batch)

    def example_products(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> Vector:
        """``∇C_i · v`` for each of the batch's examples, ``(B,)`` or ``(B, k)``."""
        beside = (batch, _rows(v, params))
        products = self._run(_derivatives.example_product, (loss,), params, beside)
        return products[0] if v.ndim == 1 else products.T

    def input_derivatives(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> Batch:
        """The derivatives of ``∇ loss(params, batch) · v`` by the batch's floating arrays; None for the rest.

        For ``v`` of shape ``(P, k)`` they have a leading axis k.
        """
        if not inputs(batch):
            return in_place_of_inputs(np.empty(0), batch)
        products = self._run(_derivatives.input_product, (loss,), params, (batch, _rows(v, params)))
        return in_place_of_inputs(products[0] if v.ndim == 1 else products, batch)

    def open(self, predict: Predict, params: Params, batch: Batch) -> OpenModel:
        """A forward pass of ``predict(params, batch)`` with what goes into its layers.

        Layers are products, convolutions (channels last) and look-ups with a parameter in the graph that
        TensorFlow traces. Those inside loops, conditions and compiled functions are not seen.
        """
        return OpenModel(self._run, predict, params, batch)

    def cotangent_loss(self, predict: Predict) -> Loss:
        """The loss ``⟨outputs, cotangents⟩`` of a batch ``(batch, cotangents)``; equal for equal models."""
        return CotangentLoss(predict)

    def restore(self, checkpoint: Any, params: Params) -> Params:
        """The parameters that a checkpoint holds, in the structure of ``params``."""
        return restore(checkpoint, params)

    def blocks(self, params: Params) -> Mapping[str, slice]:
        """The part of the flat vector that each variable is.

        The names are the ``path`` of Keras' variables, the ``name`` of those in a ``tf.Module``, and the
        places ``key/…/key`` of those in a structure.
        """
        ends = np.cumsum([0, *map(_parameters.size_of, _parameters.variables_of(params))]).tolist()
        return dict(zip(_parameters.names_of(params), map(slice, ends[:-1], ends[1:]), strict=True))

    def _run(
        self,
        derivative: Callable[..., Any],
        functions: tuple[Callable[..., Any], ...],
        params: Params,
        batch: Batch,
        v: Vector | None = None,
    ) -> Any:
        variables = [] if params is None else _parameters.variables_of(params)
        owner = _parameters.owner_of(params)
        if v is not None:
            v = np.asarray(v, dtype=_parameters.vector_dtype(variables).as_numpy_dtype)
            size = sum(map(_parameters.size_of, variables))
            if v.ndim not in (1, 2) or v.shape[0] != size or 0 in v.shape[1:]:
                raise WrongShape(v.shape, size)
        graph = self._graph(derivative, functions, owner, variables, 0 if v is None else v.ndim)
        return graph(functions, owner, variables, batch, v, _parameters.values_of(params, variables))

    def _graph(
        self,
        derivative: Callable[..., Any],
        functions: tuple[Callable[..., Any], ...],
        owner: Params,
        variables: list[Any],
        ndim: int,
    ) -> Graph:
        # Equal losses share their graphs. Ids are safe as keys: what they belong to is kept beside the graph.
        losses = tuple(function if isinstance(function, Hashable) else id(function) for function in functions)
        key = (derivative, losses, id(owner), tuple(map(id, variables)), ndim)
        with self._lock:
            if key not in self._graphs:
                graph = shared_graph(derivative, functions, owner, variables, ndim)
                self._graphs[key] = graph, (functions, owner, variables)
                if len(self._graphs) > _MOST_GRAPHS:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            return self._graphs[key][0]


def _rows(v: Vector, params: Params) -> np.ndarray:
    """The columns of a block, or a vector, as rows in the dtype of the parameters."""
    dtype = _parameters.vector_dtype(_parameters.variables_of(params)).as_numpy_dtype
    return np.ascontiguousarray(np.atleast_2d(np.asarray(v, dtype=dtype).T))
