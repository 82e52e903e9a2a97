"""The objective over numpy: weights of batches, checks of the loss and of the data."""

from __future__ import annotations

from collections import UserDict

import numpy as np
import pytest

import ihvp
from ihvp import errors
from ihvp.backend import GradientFunction

X = np.array([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [4.0, -1.0]])
Y = np.array([1.0, -1.0, 2.0, 0.5, 0.0])
W = np.array([0.3, -0.7])


def gradient(w, batch):
    """Of the mean of ``(x w − y)² / 2``."""
    x, y = (batch["x"], batch["y"]) if hasattr(batch, "keys") else batch
    return x.T @ (x @ w - y) / len(y)


def summed_gradient(w, batch):
    return gradient(w, batch) * len(batch[1])


def value(w, batch):
    return ((batch[0] @ w - batch[1]) ** 2).mean() / 2


EXACT = X.T @ (X @ W - Y) / 5


class Loader:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


RAGGED = [(X[:2], Y[:2]), (X[2:4], Y[2:4]), (X[4:], Y[4:])]


def objective(**changes):
    return ihvp.Objective(**{"params": W.copy(), "data": (X, Y), "grad": gradient} | changes)


# Weights


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        {"x": X, "y": Y},
        UserDict(x=X, y=Y),
        RAGGED,
        RAGGED[::-1],
        Loader(RAGGED),
        Loader([{"x": x, "y": y} for x, y in RAGGED]),
        [UserDict(x=x, y=y) for x, y in RAGGED],
    ],
    ids=["tuple", "dict", "UserDict", "ragged", "ragged last first", "loader", "dict loader", "UserDicts"],
)
def test_gradient_is_the_mean_over_examples_however_they_are_batched(data):
    np.testing.assert_allclose(objective(data=data).gradient(), EXACT, rtol=1e-14)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 6])
def test_batch_size_does_not_change_the_gradient(batch_size):
    np.testing.assert_allclose(objective(batch_size=batch_size).gradient(), EXACT, rtol=1e-13)


@pytest.mark.parametrize("data", [(X, Y), RAGGED])
def test_reduction_sum_gives_the_same_mean(data):
    result = objective(data=data, grad=summed_gradient, reduction="sum")
    np.testing.assert_allclose(result.gradient(), EXACT, rtol=1e-14)


@pytest.mark.parametrize("data", [(X, Y), RAGGED])
def test_value_is_the_mean_over_examples(data):
    found = objective(loss=value, data=data).value()
    np.testing.assert_allclose(found, ((X @ W - Y) ** 2).mean() / 2, rtol=1e-14)


def test_value_of_a_summed_loss_is_the_mean_over_examples():
    found = objective(loss=lambda w, b: value(w, b) * len(b[1]), data=RAGGED, reduction="sum").value()
    np.testing.assert_allclose(found, ((X @ W - Y) ** 2).mean() / 2, rtol=1e-14)


def test_loss_of_the_parameters_alone_needs_no_data():
    np.testing.assert_array_equal(ihvp.Objective(params=W, grad=lambda w, batch: 2 * w).gradient(), 2 * W)


def test_num_params_and_num_examples_count():
    result = objective(data=RAGGED)
    assert (result.num_params, result.num_examples) == (2, 5)


@pytest.mark.parametrize("data", [(X, Y), RAGGED])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_per_example_gradients_are_the_gradients_of_single_examples(data, batch_size):
    rows = objective(data=data, batch_size=batch_size).per_example_gradients()
    np.testing.assert_allclose(rows, X * (X @ W - Y)[:, None], rtol=1e-14)


def test_per_example_gradients_average_to_the_gradient():
    result = objective(data=RAGGED)
    np.testing.assert_allclose(result.per_example_gradients().mean(0), result.gradient(), rtol=1e-14)


def test_per_example_gradients_of_other_data():
    rows = objective().per_example_gradients((X[1:3], Y[1:3]))
    np.testing.assert_allclose(rows, (X * (X @ W - Y)[:, None])[1:3], rtol=1e-14)


def test_per_example_gradients_come_in_chunks_of_bounded_size(monkeypatch):
    monkeypatch.setattr("ihvp.objective.example_gradients._CHUNK_NUMBERS", 4)
    chunks = list(objective().per_example_gradient_chunks())
    assert [chunk.shape for chunk in chunks] == [(2, 2), (2, 2), (1, 2)]
    np.testing.assert_allclose(np.concatenate(chunks), X * (X @ W - Y)[:, None], rtol=1e-14)


def test_gradient_function_that_returns_its_own_buffer_is_not_written_to():
    buffer = np.empty(2)
    result = objective(data=RAGGED, grad=lambda w, batch: np.copyto(buffer, gradient(w, batch)) or buffer)
    np.testing.assert_allclose(result.gradient(), EXACT, rtol=1e-14)
    np.testing.assert_array_equal(buffer, gradient(W, RAGGED[-1]))


def test_predict_and_loss_are_composed():
    result = objective(predict=lambda w, b: b[0] @ w, loss=lambda out, b: ((out - b[1]) ** 2).mean() / 2)
    np.testing.assert_allclose(result.value(), ((X @ W - Y) ** 2).mean() / 2, rtol=1e-14)


def test_composed_losses_of_equal_parts_are_equal():
    def predict(w, b):
        return b[0] @ w

    one, two = (objective(predict=predict, loss=value, grad=None, backend=_Anything()) for _ in range(2))
    assert one.loss == two.loss
    assert hash(one.loss) == hash(two.loss)


# What the loss does


@pytest.mark.parametrize(
    ("returned", "name"),
    [
        (np.ones(3), r"numpy\.ndarray of shape \(3,\)"),
        (np.ones(1), r"numpy\.ndarray of shape \(1,\)"),
        (None, "None"),
        ({}, "dict"),
        (1j, "complex"),
        ("a", "str"),
    ],
)
def test_loss_that_is_no_scalar_is_named(returned, name):
    with pytest.raises(errors.LossNotScalar, match=rf"The loss returned {name}; expected one real scalar"):
        objective(loss=lambda w, b: returned).value()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_loss_that_is_not_finite_names_the_batch(bad):
    def loss(w, batch):
        return bad if len(batch[1]) == 1 else 1.0

    with pytest.raises(errors.NonFinite, match=r"The loss is not finite .* on batch 2") as caught:
        objective(loss=loss, data=RAGGED).value()
    assert caught.value.batch == 2


def test_value_without_a_loss_is_refused():
    with pytest.raises(errors.InvalidOption, match="a loss beside grad="):
        objective().value()


@pytest.mark.parametrize("bad_batch", [0, 1, 2])
def test_gradient_that_is_not_finite_names_the_batch(bad_batch):
    data = [(x.copy(), y) for x, y in RAGGED]
    data[bad_batch][0][0, 0] = np.nan
    with pytest.raises(errors.NonFinite, match=rf"on batch {bad_batch}\. Look at that batch") as caught:
        objective(data=data).gradient()
    assert caught.value.batch == bad_batch


def test_per_example_gradient_that_is_not_finite_names_the_batch():
    data = [(X, Y), (np.full((1, 2), np.inf), Y[:1])]
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(errors.NonFinite, match=r"per-example gradient .* batch 1"),
    ):
        objective(data=data).per_example_gradients()


@pytest.mark.parametrize("use", [lambda o: o.gradient(), lambda o: ihvp.Hessian(o) @ W])
def test_gradient_that_differs_between_calls_is_refused_with_the_usual_causes(use, rng):
    noisy = objective(grad=lambda w, b: gradient(w, b) * rng.uniform(0.5, 1.5, 2))
    with pytest.raises(errors.NonDeterministicGradient, match=r"dropout or batch norm .*model\.eval\(\)"):
        use(noisy)


def test_gradient_that_differs_in_its_last_bits_is_accepted(rng):
    noisy = objective(grad=lambda w, b: gradient(w, b) * (1 + 1e-12 * rng.uniform(size=2)))
    np.testing.assert_allclose(noisy.gradient(), EXACT, rtol=1e-11)


@pytest.mark.parametrize("use", [lambda o: o.gradient(), lambda o: ihvp.Hessian(o) @ W])
def test_loss_that_does_not_depend_on_the_parameters_is_refused(use):
    constant = objective(grad=lambda w, b: np.zeros(2))
    with pytest.raises(errors.LossIndependentOfParameters, match=r"Compute it from the `params`"):
        use(constant)


def test_gradient_that_is_zero_at_an_optimum_is_accepted():
    at_optimum = ihvp.Objective(params=np.zeros(2), grad=lambda w, b: 3 * w)
    np.testing.assert_array_equal(at_optimum.gradient(), [0, 0])


def test_loss_is_checked_once():
    calls = []
    result = objective(grad=lambda w, b: calls.append(1) or gradient(w, b))
    result.gradient()
    first = len(calls)
    result.gradient()
    assert len(calls) - first == 1


# What the data does


class _Shrinking:
    """Loses a batch at every pass."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(RAGGED[: 4 - self.passes])


class _Exhausted:
    """Looks re-iterable and is not."""

    def __init__(self):
        self.rest = iter(RAGGED)

    def __iter__(self):
        return self.rest


def test_data_with_another_number_of_examples_at_a_later_pass_is_refused():
    result = objective(data=_Shrinking())
    result.gradient()
    with pytest.raises(errors.DataError, match=r"gave 5 examples at first and 4 now; expected the same data"):
        result.gradient()


def test_data_that_turns_out_to_be_exhausted_never_gives_a_wrong_answer():
    result = objective(data=_Exhausted())
    np.testing.assert_allclose(result.gradient(), EXACT, rtol=1e-14)
    with pytest.raises(errors.NotReiterable, match="can be iterated only once"):
        result.gradient()


def test_generator_is_refused_at_once():
    with pytest.raises(errors.NotReiterable):
        objective(data=(batch for batch in RAGGED))


def test_empty_data_is_refused():
    with pytest.raises(errors.EmptyData):
        objective(data=[]).gradient()


def test_batches_of_unequal_structure_are_refused():
    with pytest.raises(errors.UnequalBatches):
        objective(data=[(X, Y), {"x": X, "y": Y}]).gradient()


# What else the caller passed


@pytest.mark.parametrize("option", ["loss", "predict", "grad"])
@pytest.mark.parametrize("value", [3.0, "a"])
def test_what_is_called_is_a_function(option, value):
    functions = {"loss": lambda w, batch: w.sum(), option: value}
    with pytest.raises(errors.InvalidOption, match=rf"{option} is .*; expected a function"):
        ihvp.Objective(params=np.ones(2), **functions)


def test_neither_loss_nor_gradient_is_refused():
    with pytest.raises(errors.InvalidOption, match=r"a function loss\(params, batch\), or grad="):
        ihvp.Objective(params=W)


def test_no_parameters_are_refused():
    with pytest.raises(errors.ParameterError, match="params is None"):
        ihvp.Objective(value)


@pytest.mark.parametrize("params", [np.array([1, 2]), np.array([1j]), np.array([True]), {}, []])
def test_parameters_that_cannot_be_differentiated_by_are_refused(params):
    with pytest.raises(errors.ParameterError, match="expected numpy arrays of a real floating dtype"):
        ihvp.Objective(params=params, grad=gradient, backend="numdiff")


def test_unknown_reduction_is_refused():
    with pytest.raises(errors.InvalidOption, match=r"reduction is 'max'; expected 'mean' or 'sum'"):
        objective(reduction="max")


def test_gradient_of_the_wrong_length_is_refused():
    with pytest.raises(errors.GradientMismatch):
        objective(grad=lambda w, b: np.ones(3)).gradient()


# The parameters afterwards


def _raises(w, batch):
    raise RuntimeError("the user's own")


@pytest.mark.parametrize("bad", [gradient, _raises, lambda w, b: w * np.nan, lambda w, b: np.zeros(2)])
def test_parameters_are_bit_for_bit_the_same_after_success_and_failure(bad):
    params = W.copy()
    before = params.tobytes()
    result = objective(params=params, grad=bad)
    for call in (result.gradient, lambda: ihvp.Hessian(result) @ W, result.per_example_gradients):
        try:
            call()
        except (errors.IhvpError, RuntimeError):
            continue
    assert params.tobytes() == before


def test_the_users_own_error_comes_through():
    with pytest.raises(RuntimeError, match="the user's own"):
        objective(grad=_raises).gradient()


# Processes


class _Anything:
    """A backend whose members are never reached."""

    device = "cpu"

    def flatten(self, params):
        return params.reshape(-1)

    def unflatten(self, vector, like):
        return vector.reshape(like.shape)

    def grad(self, loss, params, batch):
        return loss.grad(params, batch) if isinstance(loss, GradientFunction) else None

    def hvp(self, loss, params, batch, v):
        raise NotImplementedError


class _TwoProcesses(_Anything):
    """Answers for another process, which holds the examples ``other`` and sends what this one sends."""

    def __init__(self, other):
        self.other = other
        self.sent = []

    def reduce(self, vector):
        self.sent.append(vector)
        if np.issubdtype(vector.dtype, np.integer):
            return vector + np.array([0, len(self.other[1])])
        total = 5  # the mean over all examples is what both processes sum up to
        return vector + gradient(W, self.other) * len(self.other[1]) / total

    def place(self):
        return 0, 2

    def tell(self, error):
        pass


def test_gradient_over_processes_is_the_mean_over_all_examples():
    backend = _TwoProcesses((X[2:], Y[2:]))
    result = objective(data=(X[:2], Y[:2]), backend=backend, checks=False)
    np.testing.assert_allclose(result.gradient(), EXACT, rtol=1e-14)


# Cutting


def squares(transform=lambda x: x):
    """The gradient of ``mean (t(x) w)² / 2``."""
    return lambda w, x: transform(x).T @ (transform(x) @ w) / len(x)


def test_examples_of_a_mean_add_up(rng):
    objective = ihvp.Objective(params=np.ones(3), data=rng.normal(size=(7, 3)), grad=squares())
    assert objective.adds_up(3)


def test_examples_of_a_mean_add_up_at_an_optimum(rng):
    x = rng.normal(size=(7, 3))
    mean = x.mean(axis=0)
    objective = ihvp.Objective(params=mean, data=x, grad=lambda w, x: w - x.mean(axis=0))
    assert np.linalg.norm(objective.gradient()) < 1e-15
    assert objective.adds_up(2)


def test_examples_of_a_sum_add_up_if_it_is_said_to_be_one(rng):
    x = rng.normal(size=(7, 3))
    options = {"params": np.ones(3), "data": x, "grad": lambda w, x: x.T @ (x @ w)}
    assert ihvp.Objective(**options, reduction="sum").adds_up(3)
    assert not ihvp.Objective(**options).adds_up(3)


def test_examples_that_are_compared_with_each_other_do_not_add_up(rng):
    gradient = squares(lambda x: x - x.mean(axis=0))
    objective = ihvp.Objective(params=np.ones(3), data=rng.normal(size=(7, 3)), grad=gradient)
    assert not objective.adds_up(3)


def test_a_mean_over_some_of_the_examples_does_not_add_up():
    x = np.array([1.0, 2.0, 3.0, np.nan])[:, None]

    def gradient(w, x):
        known = x[~np.isnan(x[:, 0])]
        return known.T @ (known @ w) / len(known)

    assert not ihvp.Objective(params=np.ones(1), data=x, grad=gradient).adds_up(3)


def test_rows_that_the_loss_cannot_take_alone_do_not_add_up(rng):
    matrix = rng.normal(size=(3, 3))
    objective = ihvp.Objective(params=np.ones(3), data=matrix, grad=lambda w, A: np.linalg.solve(A, w))
    assert not objective.adds_up(2)


def test_the_comparison_is_made_once(regression, rows):
    objective = ihvp.Objective(regression.loss, np.ones(3), rows, backend=regression)
    objective.adds_up(3)
    before = regression.gradients
    objective.adds_up(3)
    assert regression.gradients == before
    assert objective.on(rows).adds_up(3)
    assert regression.gradients > before
