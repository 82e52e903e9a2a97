"""Influence scores on every backend, in one process: the same from the same weights."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import ihvp
from ihvp import fingerprint
from ihvp._problems import TanhMLP
from ihvp._registry import usable_plugin
from ihvp.errors import DataError, NonFinite, OrderChanges
from ihvp.experiments.digits import Problem, load, probabilities
from ihvp.influence import blocks
from ihvp.influence.store import Store

EXACT = ("torch", "tf", "jax")
every_backend = pytest.mark.parametrize("backend", [*EXACT, "numdiff"])
each_exact = pytest.mark.parametrize("backend", EXACT)
BOUNDS = dict.fromkeys(EXACT, 1e-8) | {"numdiff": 1e-5}
TESTS = 20


@functools.cache
def digits():
    """Weights at the optimum, training data, test data, and the scores by their definition."""
    train, test = load()
    (x, targets, _), weights = train.batch(), np.zeros((65, 10))
    for _ in range(50):
        p = probabilities(weights, x)
        gradient = x.T @ (p - targets) / len(x) + 0.01 * weights
        outer = np.einsum("ni,na->nia", x, p).reshape(len(x), 650)
        H = -outer.T @ outer / len(x)
        for a in range(10):
            H[a::10, a::10] += (x.T * p[:, a]) @ x / len(x)
        H += 0.01 * np.eye(650)
        if np.linalg.norm(gradient) < 1e-13:
            break
        weights = weights - np.linalg.solve(H, gradient.ravel()).reshape(65, 10)

    def rows(digits):
        outer = probabilities(weights, digits.images) - np.eye(10)[digits.labels]
        return np.einsum("ni,nc->nic", digits.images, outer).reshape(-1, 650)

    test = type(test)(test.images[:TESTS], test.labels[:TESTS])
    scores = rows(test) @ np.linalg.solve(H, rows(train).T) / len(x)
    return weights, train.batch(), test.batch(), scores


@functools.cache
def scores_of(backend):
    weights, train, test, _ = digits()
    problem = Problem(usable_plugin(backend))
    solver = ihvp.CG(rtol=1e-10 if backend != "numdiff" else 1e-6)
    influence = ihvp.Influence(problem.objective(weights, train), solver=solver, train_loss=problem.data_loss)
    return np.asarray(influence.scores(test, test_loss=problem.data_loss))


def difference(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@every_backend
def test_scores_of_the_digits_are_the_definitions(backend):
    assert scores_of(backend).shape == (TESTS, 1500)
    assert difference(scores_of(backend), digits()[-1]) <= BOUNDS[backend]


@pytest.mark.parametrize("other", ["tf", "jax", "numdiff"])
def test_backends_agree(other):
    assert difference(scores_of(other), scores_of("torch")) <= BOUNDS[other]


NETWORK = TanhMLP(rows=12)


@functools.cache
def written(backend):
    """The loss, the parameters and the model: the same for all objectives, so that they are compiled once."""
    dialect = usable_plugin(backend).dialect()
    loss, predict = (functools.partial(part, dialect.xp) for part in (NETWORK.output_loss, NETWORK.predict))
    return loss, dialect.parameters(NETWORK.params), predict


def network(backend, data=None, **options):
    """A small network with its outputs apart from its loss, as Gauss–Newton products need it."""
    loss, params, predict = written(backend)
    data = NETWORK.batch if data is None else data
    return ihvp.Objective(loss, params, data, predict=predict, backend=backend, **options)


def untrained(objective, **options):
    """Influence without the warning that it is of a model that was not trained."""
    influence = ihvp.Influence(objective, **options)
    influence._model._optimum_checked = True
    return influence


def gauss_newton(backend, **options):
    objective = network(backend, **options)
    return untrained(
        objective, damping=0.1, curvature=ihvp.GaussNewton(objective), solver=ihvp.CG(rtol=1e-12)
    )


@functools.cache
def gradients():
    return np.stack([NETWORK.flat_gradient(rows=slice(n, n + 1)) for n in range(12)])


@each_exact
@pytest.mark.parametrize("batch_size", [None, 5])
def test_scores_by_gauss_newton_with_predict(backend, batch_size):
    J, damped = gradients(), NETWORK.gauss_newton() + 0.1 * np.eye(NETWORK.size)
    found = gauss_newton(backend, batch_size=batch_size).scores(tuple(array[:3] for array in NETWORK.batch))
    assert difference(np.asarray(found), J[:3] @ np.linalg.solve(damped, J.T) / 12) <= 1e-9


@each_exact
def test_the_second_order_of_a_group_by_gauss_newton(backend):
    J, matrix = gradients(), NETWORK.gauss_newton() - 3 / 12 * NETWORK.gauss_newton(slice(4, 7))
    expected = J[:2] @ np.linalg.solve(matrix + 0.1 * np.eye(NETWORK.size), J[4:7].sum(axis=0)) / 12
    test = tuple(array[:2] for array in NETWORK.batch)
    found = gauss_newton(backend).group([4, 5, 6], test, second_order=True)
    assert difference(np.asarray(found), expected) <= 1e-9


@every_backend
def test_streamed_scores_go_on_bit_for_bit(backend, tmp_path, monkeypatch):
    weights, train, test, _ = digits()
    train, test = (tuple(array[:60] for array in batch) for batch in (train, test))
    problem = Problem(usable_plugin(backend))
    monkeypatch.setattr(blocks, "NUMBERS", 650 * 12)

    def run(folder):
        influence = untrained(
            problem.objective(weights, train), solver=ihvp.CG(rtol=1e-4), train_loss=problem.data_loss
        )
        return influence.scores(test, test_loss=problem.data_loss, out=tmp_path / folder)

    original, written = Store.write, []

    def interrupted(store, *chunk):
        written.append(chunk)
        if len(written) == 7:
            raise KeyboardInterrupt
        original(store, *chunk)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("one")
    one, two = (run(folder) for folder in ("one", "two"))
    assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    assert one.residual == two.residual


X, LABELS = np.random.default_rng(0).normal(size=(6, 3)), np.array([0, 1, 0, 1, 1, 0])


def torch_labels():
    import torch

    def loss(W, batch):
        return torch.nn.functional.cross_entropy(batch[0] @ W["w"], batch[1])

    return loss, {"w": torch.eye(3, 2, dtype=torch.float64)}, torch.tensor(X), torch.tensor(LABELS)


def tf_labels():
    import tensorflow as tf

    def loss(W, batch):
        scores = tf.convert_to_tensor(batch[0]) @ W[0]
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], scores))

    return loss, [tf.Variable(np.eye(3, 2))], X, LABELS


def jax_labels():
    import jax
    import jax.numpy as jnp

    def loss(W, batch):
        logarithms = jax.nn.log_softmax(batch[0] @ W["w"])
        return -jnp.mean(jnp.take_along_axis(logarithms, batch[1][:, None], axis=1))

    return loss, {"w": np.eye(3, 2)}, X, LABELS


@pytest.mark.parametrize("problem", [torch_labels, tf_labels, jax_labels])
def test_labels_out_of_range_are_named(problem):
    # torch and TensorFlow raise; JAX has the value NaN and the gradient zero.
    loss, params, x, labels = problem()
    backend = problem.__name__.partition("_")[0]
    influence = untrained(ihvp.Objective(loss, params, (x, labels), backend=backend), damping=1.0)
    assert influence.scores((x, labels)).shape == (6, 6)
    with pytest.raises((DataError, NonFinite), match=r"test (data|examples)"):
        influence.scores((x, labels + 1))
    with pytest.raises((DataError, NonFinite), match=r"training (data|examples)"):
        influence.scores((x, labels), (x, labels + 1))


def test_a_shuffling_data_loader_is_refused():
    import torch

    data = torch.utils.data.TensorDataset(*map(torch.tensor, NETWORK.batch))
    influence = untrained(network("torch", data=data.tensors), damping=1.0)
    in_order, shuffling = (
        torch.utils.data.DataLoader(data, batch_size=4, shuffle=shuffle) for shuffle in (False, True)
    )
    assert influence.scores(data.tensors, in_order).shape == (12, 12)
    with pytest.raises(OrderChanges, match="DataLoader"):
        influence.scores(data.tensors, shuffling)


def test_a_shuffling_tensorflow_data_set_is_refused():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(NETWORK.batch)
    influence = untrained(network("tf"), damping=1.0)
    assert influence.scores(NETWORK.batch, data.batch(5)).shape == (12, 12)
    with pytest.raises(OrderChanges):
        influence.scores(NETWORK.batch, data.shuffle(12).batch(5))


def torch_native(array):
    import torch

    tensor = torch.tensor(array)
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


def tf_native(array):
    import tensorflow as tf

    return tf.constant(array)


def jax_native(array):
    import jax.numpy as jnp

    return jnp.asarray(array)


@pytest.mark.parametrize("native", [torch_native, tf_native, jax_native])
def test_native_arrays_have_fingerprints(native):
    batch = {"x": native(np.arange(6.0).reshape(3, 2)), "labels": native(np.arange(3))}
    changed = dict(batch, labels=batch["labels"] + 1)
    assert fingerprint.of_batch(batch) == fingerprint.of_batch(dict(batch))
    assert fingerprint.of_batch(batch) != fingerprint.of_batch(changed)
