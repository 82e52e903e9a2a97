"""What mutants are made of: an exact backend with all capabilities, and an approximate one."""

from __future__ import annotations

import dataclasses
import itertools

import autograd
import autograd.numpy
import numpy as np
import pytest
from ihvp_autograd._backend import AutogradBackend, _real_scalar

from ihvp._registry import registered
from ihvp.backend import CAPABILITIES, Dialect
from ihvp.checkpoint_file import require_same_arrays
from ihvp.layers import Layer
from ihvp.testing import BackendContract
from ihvp.testing.case import _functions


class Leaf(np.ndarray):
    """An array with what some frameworks keep beside the values of a parameter."""

    grad = None
    requires_grad = False


class Reference(AutogradBackend):
    """The example plugin with all capabilities of exact backends, plainly written, and ways to break it."""

    def flatten(self, params):
        return np.asarray(super().flatten(params))

    def linearize(self, loss, params, batch):
        return Linearised(lambda: self.flatten(params), lambda v: self.hvp(loss, params, batch, v))

    def hvp_sum(self, loss, params, batch, v, size):
        starts = range(0, _count(batch) - size + 1, size)
        return sum(self.hvp(loss, params, rows(batch, slice(i, i + size)), v) for i in starts)

    def per_example_grads(self, loss, params, batch):
        each = (rows(batch, slice(i, i + 1)) for i in range(_count(batch)))
        return np.stack([self.grad(loss, params, example) for example in each])

    def gnvp(self, predict, loss, params, batch, v):
        w = self.flatten(params)
        outputs = predict(self.unflatten(w, params), batch)
        J = autograd.jacobian(lambda w: predict(self.unflatten(w, params), batch).ravel())(w)
        curvature, _ = autograd.make_hvp(lambda o: _real_scalar(loss(o.reshape(outputs.shape), batch)))(
            outputs.ravel()
        )
        columns = [J.T @ curvature(J @ column) for column in np.atleast_2d(v.T)]
        return (columns[0] if v.ndim == 1 else np.stack(columns, axis=1)).astype(w.dtype)

    def linearize_gauss_newton(self, predict, loss, params, batch):
        return Linearised(lambda: self.flatten(params), lambda v: self.gnvp(predict, loss, params, batch, v))

    def batch_products(self, loss, params, predict=None):
        if predict is None:
            return lambda batch, v: self.hvp(loss, params, batch, v)
        return lambda batch, v: self.gnvp(predict, loss, params, batch, v)

    def push_forward(self, predict, params, batch, v):
        w = self.flatten(params)

        def jacobian(i):
            return autograd.jacobian(lambda w: outputs(w)[i])(w)

        def outputs(w):
            found = predict(self.unflatten(w, params), batch)
            return found if isinstance(found, list) else [found]

        return tuple(jacobian(i) @ v for i in range(len(outputs(w))))

    def restore(self, checkpoint, params):
        expected = {name: np.shape(array) for name, array in params.items()}
        require_same_arrays({name: np.shape(array) for name, array in checkpoint.items()}, expected)
        return {name: np.array(checkpoint[name], array.dtype) for name, array in params.items()}

    def reduce(self, vector):
        return vector

    def place(self):
        return 0, 1

    def tell(self, error):
        pass

    def value(self, loss, params, batch):
        return loss(params, batch)

    def example_products(self, loss, params, batch, v):
        return self.per_example_grads(loss, params, batch) @ v

    def input_derivatives(self, loss, params, batch, v):
        w = self.flatten(params)

        def by(array, put):
            if getattr(array, "dtype", None) is None or array.dtype.kind != "f" or not array.ndim:
                return None

            pull, _ = autograd.make_vjp(
                lambda array: autograd.grad(self._of_vector(loss, params, put(array)))(w)
            )(array)
            columns = [pull(column) for column in np.atleast_2d(v.T)]
            return columns[0] if v.ndim == 1 else np.stack(columns)

        return _each_array(by, batch, lambda array: array)

    def open(self, predict, params, batch):
        return OpenNetwork(self, predict, params, batch)

    def cotangent_loss(self, predict):
        return lambda params, batch: autograd.numpy.sum(predict(params, batch[0]) * batch[1][0])

    def blocks(self, params):
        stops = itertools.accumulate(leaf.size for leaf in params.values())
        return {key: slice(stop - params[key].size, stop) for key, stop in zip(params, stops, strict=True)}

    def around(self, name, function):
        """Put ``function(original, functions, params, batch)`` in the place of a method."""
        original, losses = getattr(self, name), 2 if name in ("gnvp", "linearize_gauss_newton") else 1

        def products(loss, params):
            return lambda batch, v: function(
                lambda functions, params, batch: original(*functions, params)(batch, v),
                (loss,),
                params,
                batch,
            )

        def method(*arguments):
            functions, (params, batch, *rest) = arguments[:losses], arguments[losses:]
            return function(
                lambda functions, params, batch: original(*functions, params, batch, *rest),
                functions,
                params,
                batch,
            )

        setattr(self, name, products if name == "batch_products" else method)

    def change_results(self, name, change):
        """Change the results of a method, or those of the maps that it gives."""

        def method(original, functions, params, batch):
            result = original(functions, params, batch)
            if name in ("linearize", "linearize_gauss_newton"):
                return lambda v: change(result(v))
            return type(result)(map(change, result)) if isinstance(result, tuple) else change(result)

        self.around(name, method)


class OpenNetwork:
    """A model that is a partial of a function of ``xp``; its layers are the calls of ``matmul``."""

    def __init__(self, backend, predict, params, batch):
        self.backend, self.batch = backend, batch
        names, self.layers, self.inputs = backend.blocks(params), [], []
        params = {key: np.asarray(leaf) for key, leaf in params.items()}

        def outputs(taps):
            return predict.func(Tapped(predict.args[0], params, taps, seen), params, batch)

        seen = []
        self.array = outputs(itertools.repeat(0))
        self.shapes = [self.array.shape]
        taps = []
        for key, x in list(seen):
            (d_in, d_out), start = params[key].shape, names[key].start
            self.layers.append(Layer(key, start, (d_in, d_out), (1, 0), d_in, d_out))
            self.inputs.append(x[:, None, None])
            taps.append(np.zeros((len(x), d_out)))
        pulls = [
            autograd.make_vjp(lambda tap, i=i: outputs([*taps[:i], tap, *taps[i + 1 :]]))(tap)[0]
            for i, tap in enumerate(taps)
        ]
        self.pull_back = lambda cotangents: [
            np.stack([pull(row.reshape(self.array.shape)) for row in cotangents])[:, :, None, None]
            for pull in pulls
        ]

    def outputs(self):
        return self.array.ravel()

    def output_gradient(self, loss):
        return self.backend.grad(loss, self.array, self.batch)

    def output_hvp(self, loss, v):
        return self.backend.hvp(loss, self.array, self.batch, v)


class Tapped:
    """``xp`` with a tap added to each product with a parameter, whose name and input it notes."""

    def __init__(self, xp, params, taps, seen):
        self.xp, self.params, self.taps, self.seen = xp, params, iter(taps), seen

    def __getattr__(self, name):
        return getattr(self.xp, name)

    def matmul(self, x, w):
        self.seen.append((next(key for key, leaf in self.params.items() if leaf is w), x))
        return self.xp.matmul(x, w) + next(self.taps)


class Linearised:
    """The whole matrix, made anew when the parameters have changed."""

    def __init__(self, values, product):
        self.values, self.product, self.seen = values, product, None
        self.renew()

    def renew(self):
        now = self.values()
        if self.seen is None or not np.array_equal(now, self.seen):
            self.seen, self.H = now, self.product(np.eye(now.size, dtype=now.dtype))

    @property
    def nbytes(self):
        return self.H.nbytes

    def __call__(self, v):
        self.renew()
        return self.H @ v


def rows(batch, which):
    """Some rows of every array of a batch."""
    return _each_array(lambda array, put: array[which] if np.ndim(array) else array, batch, lambda new: new)


def _count(batch):
    return len(batch["x"] if isinstance(batch, dict) else batch[0])


def _each_array(function, batch, put):
    """``function(array, put)`` of every leaf, where ``put(new)`` is the batch with ``new`` in its place."""
    if isinstance(batch, dict):
        return {
            key: _each_array(function, item, lambda new, key=key: put({**batch, key: new}))
            for key, item in batch.items()
        }
    if isinstance(batch, list | tuple):
        return type(batch)(
            _each_array(function, item, lambda new, i=i: put(type(batch)([*batch[:i], new, *batch[i + 1 :]])))
            for i, item in enumerate(batch)
        )
    return function(batch, put)


def _parameters(arrays):
    return {key: np.array(array).view(Leaf) for key, array in arrays.items()}


class Suite(BackendContract):
    """The contract, called test by test: quicker than a run of pytest for each mutant."""

    name = "reference"

    def run(self, test):
        """Run the test whose name begins so, with each of its arguments or with that in brackets."""
        start, _, wanted = test.rstrip("]").partition("[")
        (name,) = (name for name in self.tests if name.startswith(start))
        function = getattr(type(self), name)
        marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
        for values in itertools.product(*(mark.args[1] for mark in marks)):
            arguments = {mark.args[0]: value for mark, value in zip(marks, values, strict=True)}
            if not wanted or wanted in {getattr(value, "name", value) for value in values}:
                try:
                    function(self, **arguments)
                except pytest.skip.Exception:
                    continue

    @property
    def tests(self):
        return [name for name in dir(type(self)) if name.startswith("test_")]


@pytest.fixture
def suite(monkeypatch):
    """Makes the suite of a backend, broken by a function of it."""

    def of(mutation=lambda backend: None, approximate=False):
        known = registered().plugins
        record = known["numdiff" if approximate else "autograd"]
        parameters = record.dialect().parameters if approximate else _parameters

        def factory(params=None, **options):
            backend = record.factory(params, **options) if approximate else Reference()
            mutation(backend)
            return backend

        mutant = dataclasses.replace(
            record,
            name="reference",
            factory=factory,
            capabilities=record.capabilities
            if approximate
            else frozenset(CAPABILITIES) - {"product_error", "implicit"},
            dialect=lambda: Dialect(xp=record.dialect().xp, parameters=parameters),
        )
        monkeypatch.setitem(known, "reference", mutant)
        _functions.cache_clear()
        return Suite()

    yield of
    _functions.cache_clear()
