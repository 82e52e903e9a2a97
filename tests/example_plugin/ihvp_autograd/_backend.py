"""First and second derivatives by autograd, for numpy arrays in dicts, lists or tuples."""

import autograd
import numpy as np
from autograd.tracer import getval, isbox

from ihvp.errors import LossIndependentOfParameters, LossNotScalar, ParameterError, describe


class AutogradBackend:
    device = "cpu"

    def flatten(self, params):
        leaves = []
        _map(leaves.append, params)
        return np.concatenate([np.ravel(leaf) for leaf in leaves], dtype=np.result_type(np.float32, *leaves))

    def unflatten(self, vector, like):
        start = 0

        def take(leaf):
            nonlocal start
            start += leaf.size
            # Slices, `reshape` and `astype` also work on the box that autograd records in a vector's place.
            return vector[start - leaf.size : start].reshape(leaf.shape).astype(leaf.dtype)

        return _map(take, like)

    def grad(self, loss, params, batch):
        w = self.flatten(params)
        return autograd.grad(self._of_vector(loss, params, batch))(w).astype(w.dtype)

    def hvp(self, loss, params, batch, v):
        w = self.flatten(params)
        # The gradient is recorded once; each column is one more pass back through the record.
        product, _ = autograd.make_hvp(self._of_vector(loss, params, batch))(w)
        columns = product(v) if v.ndim == 1 else np.stack([product(column) for column in v.T], axis=1)
        return columns.astype(w.dtype)

    def _of_vector(self, loss, params, batch):
        return lambda w: _real_scalar(loss(self.unflatten(w, params), batch))


def _map(function, params, path="params"):
    """The same containers with ``function`` of each array, dicts in the order of their sorted keys."""
    if isinstance(params, dict) and params:
        return {key: _map(function, params[key], f"{path}[{key!r}]") for key in sorted(params)}
    if isinstance(params, list | tuple) and params:
        return type(params)(_map(function, item, f"{path}[{i}]") for i, item in enumerate(params))
    if not isinstance(params, np.ndarray) or params.dtype.kind != "f":
        found = f"{describe(params)} ({getattr(params, 'dtype', 'no array')})"
        raise ParameterError(
            f"{path} is {found}; expected floating numpy arrays in filled dicts, lists or tuples."
        )
    return function(params)


def _real_scalar(value):
    plain = getval(value)
    if not isinstance(plain, float | np.floating | np.ndarray) or np.shape(plain) or np.iscomplexobj(plain):
        raise LossNotScalar(describe(plain))
    if not isbox(value):  # autograd boxes whatever it computes from the parameters
        raise LossIndependentOfParameters("autograd recorded no path from them to its value")
    return value
