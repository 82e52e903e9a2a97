"""A language model whose loss is a mean over labelled tokens, in batches, beside all data as one batch."""

from __future__ import annotations

import functools
import importlib

import numpy as np
import pytest

import ihvp
from ihvp.errors import LossNotAdditive

VOCABULARY, WIDTH, LENGTH, HIDDEN = 11, 8, 7, 16
SEQUENCES, BATCH, CUT, UNLABELLED, DAMPING = 24, 8, 9, 2, 10.0
IGNORED = -100

pytestmark = pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")


def tokens_and_labels(count, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (count, LENGTH))
    labels = np.roll(tokens, -1, axis=1)
    for row, length in enumerate(rng.integers(1, LENGTH + 1, count)):
        labels[row, length:] = IGNORED
    return tokens, labels


def parameters():
    rng = np.random.default_rng(0)
    shapes = {
        "tokens": (VOCABULARY, WIDTH),
        "places": (LENGTH, WIDTH),
        **dict.fromkeys(("query", "key", "value", "out"), (WIDTH, WIDTH)),
        "up": (WIDTH, HIDDEN),
        "down": (HIDDEN, WIDTH),
    }
    drawn = {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}
    norms = {
        f"{norm} {part}": one * np.ones(WIDTH) for norm in "12f" for part, one in (("by", 1.0), ("to", 0.0))
    }
    return drawn | norms


TRAIN, TEST = tokens_and_labels(SEQUENCES, 1), tokens_and_labels(3, 2)
TRAIN[1][UNLABELLED] = IGNORED
COUNTS = (TRAIN[1] != IGNORED).sum(axis=1)
FUTURE = np.triu(np.full((LENGTH, LENGTH), -1e9), 1)


def logits(p, tokens, ops):
    """One block of a GPT-2: attention and a network, each after a normalisation and around a shortcut."""
    x = ops.rows(p["tokens"], tokens) + p["places"]
    y = ops.normalised(x, p["1 by"], p["1 to"])
    mixed = ops.softmax((y @ p["query"]) @ ops.transposed(y @ p["key"]) / WIDTH**0.5 + ops.constant(FUTURE))
    x = x + mixed @ (y @ p["value"]) @ p["out"]
    y = ops.normalised(x, p["2 by"], p["2 to"]) @ p["up"]
    # By hand: TensorFlow's own rounds a constant to single precision.
    x = x + y * (1 + ops.tanh((2 / np.pi) ** 0.5 * (y + 0.044715 * y**3))) / 2 @ p["down"]
    return ops.normalised(x, p["f by"], p["f to"]) @ ops.transposed(p["tokens"])


class Torch:
    def __init__(self):
        self.torch = torch = importlib.import_module("torch")
        self.rows, self.constant = (lambda table, i: table[i]), torch.tensor
        self.softmax = functools.partial(torch.softmax, dim=-1)
        self.transposed = lambda x: x.transpose(-1, -2)
        self.tanh = torch.tanh
        self.normalised = lambda x, by, to: torch.nn.functional.layer_norm(x, (WIDTH,), by, to)

    def params(self):
        return {name: self.torch.tensor(value, requires_grad=True) for name, value in parameters().items()}

    def whole(self, data=TRAIN):
        return tuple(map(self.torch.tensor, data))

    def batched(self):
        data = self.torch.utils.data.TensorDataset(*self.whole())
        return self.torch.utils.data.DataLoader(data, batch_size=BATCH)

    def predict(self, p, batch):
        return logits(p, batch[0], self)

    def loss(self, outputs, batch):
        return self.torch.nn.functional.cross_entropy(
            outputs.flatten(0, 1), batch[1].flatten(), ignore_index=IGNORED
        )

    @staticmethod
    def weights(batch):
        return (batch[1] != IGNORED).sum(dim=1)


class Jax:
    def __init__(self):
        jax = importlib.import_module("jax")
        self.np = np_ = jax.numpy
        self.rows, self.constant = (lambda table, i: table[i]), np_.asarray
        self.softmax, self.tanh, self.log_softmax = jax.nn.softmax, np_.tanh, jax.nn.log_softmax
        self.transposed = lambda x: np_.swapaxes(x, -1, -2)

    def normalised(self, x, by, to):
        centred = x - x.mean(-1, keepdims=True)
        return centred / self.np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * by + to

    def params(self):
        return [self.np.asarray(value) for value in parameters().values()]

    def whole(self, data=TRAIN):
        return tuple(map(self.np.asarray, data))

    def batched(self):
        whole = self.whole()
        return [tuple(array[i : i + BATCH] for array in whole) for i in range(0, SEQUENCES, BATCH)]

    def predict(self, p, batch):
        return logits(dict(zip(parameters(), p, strict=True)), batch[0], self)

    def loss(self, outputs, batch):
        known = batch[1] != IGNORED
        picked = self.np.where(known, batch[1], 0)[..., None]
        found = self.np.take_along_axis(self.log_softmax(outputs), picked, axis=-1)[..., 0]
        return -(known * found).sum() / known.sum()

    @staticmethod
    def weights(batch):
        return (batch[1] != IGNORED).sum(axis=1)


FRAMEWORKS = {"torch": Torch, "jax": Jax}
# JAX compiles for every form and every shape of a batch: it has one, in all tests the same objective.
FORMS = [("torch", "whole"), ("torch", "cut"), ("torch", "batched"), ("jax", "batched")]


@functools.cache
def framework_of(name):
    return FRAMEWORKS[name]()


@pytest.fixture(params=FORMS, ids="-".join)
def case(request):
    """A framework, and the form in which it has the data."""
    return framework_of(request.param[0]), request.param[1]


@pytest.fixture
def objective(case):
    return objective_of(*case)


@functools.cache
def objective_of(framework, form, weighted=True):
    data = framework.batched() if form == "batched" else framework.whole()
    return ihvp.Objective(
        framework.loss,
        framework.params(),
        data,
        batch_size=CUT if form == "cut" else None,
        predict=framework.predict,
        weights=framework.weights if weighted else None,
    )


class Oracle:
    """The same by torch alone, all data as one batch, and single sequences one by one."""

    def __init__(self):
        ops = Torch()
        self.torch, self.ops = ops.torch, ops
        values = parameters()
        self.shapes, sizes = [v.shape for v in values.values()], [v.size for v in values.values()]
        self.names, self.sizes = list(values), sizes
        self.omega = ops.torch.tensor(np.concatenate([v.ravel() for v in values.values()]))

    def tree(self, omega):
        parts = omega.split(self.sizes)
        return {name: part.reshape(s) for name, part, s in zip(self.names, parts, self.shapes, strict=True)}

    def outputs(self, omega):
        return self.ops.predict(self.tree(omega), self.ops.whole())

    def value(self, omega, data=TRAIN):
        batch = self.ops.whole(data)
        return self.ops.loss(self.ops.predict(self.tree(omega), batch), batch)

    @functools.cached_property
    def gradient(self):
        return self.torch.func.grad(self.value)(self.omega).numpy()

    @functools.cached_property
    def hessian(self):
        return self.torch.autograd.functional.hessian(self.value, self.omega, vectorize=True).numpy()

    def slopes(self, data):
        rows = []
        for row in range(len(data[0])):
            single = tuple(array[row : row + 1] for array in data)
            known = (single[1] != IGNORED).any()
            gradient = (
                self.torch.func.grad(self.value)(self.omega, single).numpy() if known else 0 * self.gradient
            )
            rows.append(gradient)
        return np.array(rows)

    def gauss_newton(self, v):
        by = self.torch.autograd.functional
        outputs, pushed = by.jvp(self.outputs, self.omega, self.torch.tensor(v))
        _, curved = by.hvp(lambda f: self.ops.loss(f, self.ops.whole()), outputs, pushed)
        return by.vjp(self.outputs, self.omega, curved)[1].numpy()


@pytest.fixture(scope="module")
def oracle():
    return Oracle()


def error(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


def test_the_model_is_no_toy(oracle):
    assert 500 < len(oracle.omega) < 3000
    assert len(set(COUNTS)) > 4
    assert COUNTS[UNLABELLED] == 0


def test_the_gradient(objective, oracle):
    assert error(objective.gradient(), oracle.gradient) < 1e-12


def test_the_value(objective, oracle):
    assert objective.value() == pytest.approx(float(oracle.value(oracle.omega)), rel=1e-12)


@pytest.mark.parametrize("memory_budget", [0, None])
def test_products_with_the_hessian(case, objective, oracle, memory_budget):
    if case[0] is framework_of("jax") and memory_budget == 0:
        pytest.skip("its compilation takes long, and the form of a product is not what differs here")
    H = ihvp.Hessian(objective, memory_budget)
    v = np.random.default_rng(5).normal(size=(H.shape[0], 2))
    for _ in range(2):
        assert error(H @ v, oracle.hessian @ v) < 1e-10


def test_products_with_the_gauss_newton_matrix(objective, oracle):
    G = ihvp.GaussNewton(objective)
    v = np.random.default_rng(5).normal(size=(G.shape[0], 2))
    expected = np.stack([oracle.gauss_newton(column) for column in v.T], axis=1)
    assert error(G @ v, expected) < 1e-10


def test_rows_and_their_outer_product(objective, oracle):
    rows = np.asarray(objective.per_example_gradients())
    slopes, shares = oracle.slopes(TRAIN), COUNTS / COUNTS.sum()
    assert error(rows, SEQUENCES * shares[:, None] * slopes) < 1e-12
    assert not rows[UNLABELLED].any()
    assert error(rows.mean(axis=0), oracle.gradient) < 1e-12
    v = np.random.default_rng(5).normal(size=len(oracle.gradient))
    assert error(ihvp.OPG(objective) @ v, slopes.T @ (shares * (slopes @ v))) < 1e-12


def test_influence(case, objective, oracle):
    framework = case[0]
    influence = ihvp.Influence(objective, DAMPING, ihvp.CG(rtol=1e-12))
    damped = oracle.hessian + DAMPING * np.eye(len(oracle.hessian))
    assert np.linalg.eigvalsh(damped)[0] > 0.1
    slopes, shares = oracle.slopes(TRAIN), COUNTS / COUNTS.sum()
    expected = oracle.slopes(TEST) @ np.linalg.solve(damped, slopes.T * shares)
    scores = influence.scores(framework.whole(TEST))
    assert error(scores, expected) < 1e-10
    assert not np.asarray(scores)[:, UNLABELLED].any()


@pytest.mark.parametrize("form", ["whole", "batched"])
def test_more_of_influence(form, oracle):
    framework = framework_of("torch")
    influence = ihvp.Influence(objective_of(framework, form), DAMPING, ihvp.CG(rtol=1e-12))
    damped = oracle.hessian + DAMPING * np.eye(len(oracle.hessian))
    slopes, shares = oracle.slopes(TRAIN), COUNTS / COUNTS.sum()
    expected = oracle.slopes(TEST) @ np.linalg.solve(damped, slopes.T * shares)
    # Each test point is asked about alone, so that its loss may be a mean over tokens too.
    assert error(influence.scores(framework.whole(TEST), test_loss=framework.loss), expected) < 1e-9
    group = influence.group([1, UNLABELLED, 17], framework.whole(TEST))
    assert error(group, expected[:, [1, 17]].sum(axis=1)) < 1e-9
    found = shares * np.sum(slopes.T * np.linalg.solve(damped, slopes.T), axis=0)
    assert error(influence.self_influence(), found) < 1e-9


def test_without_weights_it_is_refused_with_the_share_of_the_tokens():
    found = objective_of(framework_of("torch"), "batched", weighted=False)
    for use in (found.gradient, found.value, lambda: ihvp.Hessian(found) @ np.ones(found.num_params)):
        with pytest.raises(
            LossNotAdditive, match=r"examples weigh .*%, where their number says .*Pass weights=…"
        ):
            use()


def test_without_weights_the_whole_batch_is_right(oracle):
    v = np.random.default_rng(5).normal(size=len(oracle.gradient))
    found = objective_of(framework_of("torch"), "whole", weighted=False)
    assert error(ihvp.Hessian(found) @ v, oracle.hessian @ v) < 1e-10
    with pytest.raises(LossNotAdditive):
        found.per_example_gradients()


def test_finite_differences_of_torch(oracle):
    v = np.random.default_rng(5).normal(size=len(oracle.gradient))
    framework = framework_of("torch")
    objective = ihvp.Objective(
        lambda p, batch: framework.loss(framework.predict(p, batch), batch),
        framework.params(),
        framework.batched(),
        weights=framework.weights,
        backend="numdiff",
    )
    assert error(ihvp.Hessian(objective) @ v, oracle.hessian @ v) < 1e-6
    assert error(objective.per_example_gradients().mean(axis=0), oracle.gradient) < 1e-12
