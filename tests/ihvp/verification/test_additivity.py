"""Which losses are refused where batches are taken apart, with which advice, and at which price."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp.errors import IhvpError, LossIgnoresBatch, LossNotAdditive, NonDeterministicGradient, WeightError

N, P = 40, 4
RNG = np.random.default_rng(11)
X, OMEGA = RNG.normal(size=(N, P)), RNG.normal(size=P)
LABELS = RNG.integers(0, 2, N)
CLASS_WEIGHTS = np.array([1.0, 6.0])
TOKENS = RNG.integers(0, 9, N).astype(float)


def residuals(w, labels, x):
    return 1 / (1 + np.exp(-x @ w)) - labels


def mean(w, batch):
    """Of the logistic loss."""
    x, labels, _ = batch
    return x.T @ residuals(w, labels, x) / len(x)


def total(w, batch):
    return mean(w, batch) * len(batch[0])


def over_classes(w, batch):
    x, labels, _ = batch
    weights = CLASS_WEIGHTS[labels]
    return x.T @ (weights * residuals(w, labels, x)) / weights.sum()


def over_tokens(w, batch):
    x, labels, tokens = batch
    with np.errstate(invalid="ignore", divide="ignore"):
        return x.T @ (tokens * residuals(w, labels, x)) / tokens.sum()


def negatives(w, batch):
    """Each example is told from the others of its batch by ``(x·w)²``."""
    scores = (batch[0] @ w) ** 2
    p = np.exp(scores - scores.max())
    return (p / p.sum() - 1 / len(p)) @ (2 * (batch[0] @ w)[:, None] * batch[0])


def batch_norm(w, batch):
    x = (batch[0] - batch[0].mean(axis=0)) / batch[0].std(axis=0)
    return mean(w, (x, *batch[1:]))


def regularised_total(w, batch):
    return total(w, batch) + w


def value_of_mean(w, batch):
    x, labels, _ = batch
    return float(np.logaddexp(0, -(2 * labels - 1) * (x @ w)).mean())


def data(order=None):
    order = np.arange(N) if order is None else order
    return X[order], LABELS[order], TOKENS[order]


def cut(rows, *edges):
    edges = [0, *edges, N]
    return [tuple(a[i:j] for a in rows) for i, j in itertools.pairwise(edges)]


class Loader:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def objective(grad, rows=None, batch_size=None, dtype=np.float64, **options):
    return ihvp.Objective(
        params=OMEGA.astype(dtype),
        data=data() if rows is None else rows,
        batch_size=batch_size,
        grad=grad,
        **options,
    )


# Where it is noticed

V = np.ones(P)
NEEDS_PARTS = {
    "gradient, cut": lambda grad: objective(grad, batch_size=8).gradient(),
    "gradient, listed": lambda grad: objective(grad, cut(data(), 10, 20)).gradient(),
    "gradient, loaded": lambda grad: objective(grad, Loader(cut(data(), 10, 20))).gradient(),
    "value, cut": lambda grad: objective(grad, batch_size=8, loss=LOSSES[grad]).value(),
    "product, cut": lambda grad: ihvp.Hessian(objective(grad, batch_size=8)) @ V,
    "product, listed": lambda grad: ihvp.Hessian(objective(grad, cut(data(), 10, 20))) @ V,
    "rows": lambda grad: objective(grad).per_example_gradients(),
    "chunks of rows": lambda grad: next(objective(grad).per_example_gradient_chunks()),
    "outer product": lambda grad: ihvp.OPG(objective(grad)) @ V,
    "eigenpairs of the outer product": lambda grad: ihvp.eigsh(ihvp.OPG(objective(grad)), 1),
    "samples": lambda grad: ihvp.Hessian(objective(grad)).sampler(4),
    "lissa": lambda grad: ihvp.solve(
        ihvp.Hessian(objective(grad)), V, damping=1.0, solver=ihvp.LiSSA(batch_size=4, scale=10.0)
    ),
    "scores": lambda grad: influence(grad).scores(data()),
    "top_k": lambda grad: influence(grad).top_k(data(), 1),
    "self-influence": lambda grad: influence(grad).self_influence(),
    "groups": lambda grad: influence(grad).group([1, 2], data()),
    "inputs": lambda grad: influence(grad).on_inputs(data()),
}


def influence(grad):
    return ihvp.Influence(objective(grad, loss=LOSSES.get(grad)), damping=3.0)


def weighted_value(weights_of):
    def value(w, batch):
        weights, (x, labels, _) = weights_of(batch), batch
        return float((weights * np.logaddexp(0, -(2 * labels - 1) * (x @ w))).sum() / weights.sum())

    return value


LOSSES = {
    over_classes: weighted_value(lambda batch: CLASS_WEIGHTS[batch[1]]),
    batch_norm: lambda w, batch: value_of_mean(
        w, ((batch[0] - batch[0].mean(axis=0)) / (batch[0].std(axis=0) + 1e-12), *batch[1:])
    ),
}


@pytest.mark.parametrize("use", NEEDS_PARTS.values(), ids=NEEDS_PARTS)
@pytest.mark.parametrize("grad", [over_classes, batch_norm])
def test_whatever_needs_parts_refuses_a_loss_without(use, grad):
    with np.errstate(invalid="ignore", divide="ignore"), pytest.raises(LossNotAdditive):
        use(grad)


WHOLE = {
    "gradient": lambda o: o.gradient(),
    "product": lambda o: ihvp.Hessian(o) @ V,
    "solve": lambda o: ihvp.solve(ihvp.Hessian(o), V, damping=30.0, solver=ihvp.MINRES(rtol=1e-3)).x,
    "eigenpairs": lambda o: ihvp.eigsh(ihvp.Hessian(o), 1).values,
}


@pytest.mark.parametrize("use", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("grad", [over_classes, over_tokens, total, negatives, batch_norm])
def test_all_data_as_one_batch_needs_no_parts(use, grad):
    assert np.all(np.isfinite(use(objective(grad))))


@pytest.mark.parametrize("grad", [over_classes, batch_norm])
def test_the_whole_hessian_is_that_of_the_batch(grad):
    step = 1e-5
    differences = [
        (grad(OMEGA + step * e, data()) - grad(OMEGA - step * e, data())) / (2 * step) for e in np.eye(P)
    ]
    assert_allclose(ihvp.Hessian(objective(grad)).to_dense(), differences, rtol=1e-5, atol=1e-7)


def test_checks_can_be_switched_off():
    rows = objective(over_classes, checks=False).per_example_gradients()
    assert_allclose(rows, X * residuals(OMEGA, LABELS, X)[:, None], rtol=1e-12)
    assert objective(over_classes, checks=False).report().additive.outcome == "switched off"


# What it says


def advice(grad, **options):
    with pytest.raises(LossNotAdditive) as caught:
        objective(grad, **options).per_example_gradients()
    assert caught.value.difference > 1e-7 or np.isnan(caught.value.difference)
    return str(caught.value)


def test_a_mean_by_other_weights_is_told_with_its_share():
    text = advice(over_classes)
    first, count, found, number = re.search(
        r"in which the first (\d+) of (\d+) examples weigh ([\d.]+)%, where their number says ([\d.]+)%", text
    ).groups()
    weights = CLASS_WEIGHTS[LABELS]
    assert int(count) == N
    assert float(found) == pytest.approx(100 * weights[: int(first)].sum() / weights.sum(), abs=0.01)
    assert float(number) == pytest.approx(100 * int(first) / N, abs=0.01)
    assert "Pass weights=…, a function weights(batch) -> (B,)" in text


def test_wrong_weights_are_told_beside_the_right_share():
    text = advice(over_classes, weights=lambda batch: batch[2])
    assert re.search(r"examples weigh [\d.]+%, where the weights say [\d.]+%", text)


def test_weights_of_a_plain_mean_are_too_many():
    assert re.search(
        r"as their number says, and not .*%: leave weights= out", advice(mean, weights=lambda b: b[2])
    )


def test_a_sum_that_is_said_to_be_a_mean():
    assert "It is their sum: return the mean over the batch, or pass reduction='sum'" in advice(total)


def test_a_sum_over_a_fixed_number_of_examples():
    assert "must not be divided by a fixed number" in advice(lambda w, batch: total(w, batch) / N)


def test_a_mean_that_is_said_to_be_a_sum():
    assert "It is their mean: pass reduction='mean'" in advice(mean, reduction="sum")


def test_a_weighted_mean_that_is_said_to_be_a_sum():
    text = advice(over_classes, reduction="sum")
    assert "It is a mean; pass reduction='mean'" in text
    assert "Pass weights=…" in text


def test_a_sum_with_a_regulariser():
    assert "no term that stays the same for a larger batch" in advice(regularised_total, reduction="sum")
    assert "a sum with a term that stays the same for a larger batch" in advice(regularised_total)


@pytest.mark.parametrize("grad", [negatives, batch_norm])
def test_examples_that_depend_on_each_other(grad):
    text = advice(grad)
    assert "Its examples depend on each other, as with negatives from the batch, or batch norm" in text
    assert "keep all data in one batch" in text


def test_a_part_without_labels():
    rows = (X, LABELS, np.repeat([0.0, 1.0], [30, 10]))
    with pytest.raises(LossNotAdditive, match="a part is not finite: a mean over nothing") as caught:
        objective(over_tokens, rows).per_example_gradients()
    assert "0 for those without labels" in str(caught.value)
    assert "nan" not in str(caught.value)


def test_a_loss_of_all_data_whatever_the_batch():
    with pytest.raises(LossIgnoresBatch, match="Compute it from the `batch`"):
        objective(lambda w, batch: mean(w, data()), batch_size=8).gradient()


def test_dropout_is_told_as_such():
    noise = np.random.default_rng(0)
    with pytest.raises(NonDeterministicGradient):
        objective(lambda w, b: mean(w, b) * noise.uniform(0.5, 1.5, P), batch_size=8).gradient()


def test_weights_that_a_batch_is_divided_by():
    def normalised(batch):
        return CLASS_WEIGHTS[batch[1]] / CLASS_WEIGHTS[batch[1]].sum()

    with pytest.raises(WeightError, match=r"for an example in a batch of 8, and .* for it in a part of \d"):
        objective(over_classes, batch_size=8, weights=normalised).gradient()


# Where it could hide

SORTED, REVERSED = np.argsort(LABELS, kind="stable"), np.argsort(-LABELS, kind="stable")
ALTERNATING = np.argsort(np.argsort(np.argsort(LABELS, kind="stable") % 20, kind="stable"), kind="stable")
HIDING = {
    "sorted, cut": lambda: objective(over_classes, data(SORTED), 4),
    "reversed, cut": lambda: objective(over_classes, data(REVERSED), 4),
    "sorted, in pairs": lambda: objective(over_classes, data(SORTED), 2),
    "sorted, singly": lambda: objective(over_classes, data(SORTED), 1),
    "sorted, cut nearly in half": lambda: objective(over_classes, data(SORTED), 19),
    "sorted, in a list": lambda: objective(over_classes, cut(data(SORTED), *range(4, N, 4))),
    "sorted, in a list that is cut": lambda: objective(over_classes, cut(data(SORTED), 20), 5),
    "alternating, cut": lambda: objective(over_classes, interleaved(), 4),
    "first batch of one": lambda: objective(over_classes, cut(data(), 1)),
    "first batch of one, loaded": lambda: objective(over_classes, Loader(cut(data(), 1))),
    "first batches of one, loaded": lambda: objective(over_classes, Loader(cut(data(), 1, 2, 3))),
    "one class in the first batch, loaded": lambda: objective(
        over_classes, Loader(cut(data(SORTED), int((LABELS == 0).sum())))
    ),
    "nothing weighs in the first batch": lambda: objective(
        over_classes, cut(data(), 10), weights=lambda b: 1.0 * (b[0][:, 0] != X[:10, 0].sum()) * late(b)
    ),
    "nothing weighs in the first batch, loaded": lambda: objective(
        over_classes, Loader(cut(data(), 10)), weights=late
    ),
}


def late(batch):
    """1 for the examples from number 10 on."""
    return 1.0 - np.isin(batch[0][:, 0], X[:10, 0])


def interleaved():
    order = np.empty(N, int)
    order[0::2], order[1::2] = SORTED[: N // 2], SORTED[N // 2 :]
    return data(order)


@pytest.mark.parametrize("make", HIDING.values(), ids=HIDING)
def test_batches_that_look_alike_hide_nothing(make):
    if isinstance(make().batches.data, Loader) and "late" in getattr(
        make().weighting.function, "__name__", ""
    ):
        with pytest.raises(LossNotAdditive):
            ihvp.OPG(make()) @ V
        return
    with pytest.raises(LossNotAdditive):
        make().gradient()


def test_examples_of_two_kinds_in_nearly_equal_mixtures_are_told_apart_in_single_precision():
    """Of a hundred random orders none lets both mixtures agree within rounding."""
    x, w = X.astype(np.float32), OMEGA.astype(np.float32)

    def grad(w, batch):
        x, labels = batch
        weights = np.array([1.0, 1.2], np.float32)[labels]
        return x.T @ (weights * (x @ w)) / weights.sum()

    for seed in range(100):
        labels = np.random.default_rng(seed).permutation(np.repeat([0, 1], N // 2))
        with pytest.raises(LossNotAdditive):
            ihvp.Objective(params=w, data=(x, labels), grad=grad).per_example_gradients()


def test_few_examples_that_weigh_anything_are_found():
    weights = np.zeros(N)
    weights[[37, 39]] = 1.0, 2.0
    rows = (X, LABELS, weights)
    right = objective(over_tokens, rows, weights=lambda batch: batch[2])
    assert_allclose(right.per_example_gradients().mean(axis=0), over_tokens(OMEGA, rows), rtol=1e-12)
    assert right.report().additive.outcome == "passed"
    with pytest.raises(LossNotAdditive):
        objective(over_tokens, rows, weights=lambda b: 1.0 * (b[2] > 0)).per_example_gradients()


def test_values_without_gradients_are_checked_by_themselves():
    """Accuracy and its like, whose gradient says nothing."""

    def value(w, batch):
        weights = CLASS_WEIGHTS[batch[1]]
        return float((weights * ((batch[0] @ w > 0) == batch[1])).sum() / weights.sum())

    flat = {"loss": value, "batch_size": 9}
    with pytest.raises(LossNotAdditive):
        objective(lambda w, b: np.zeros(P), **flat).value()
    right = objective(lambda w, b: np.zeros(P), weights=lambda b: CLASS_WEIGHTS[b[1]], **flat)
    assert right.value() == pytest.approx(value(OMEGA, data()), rel=1e-12)


# Where there is nothing to find


def hinge(w, batch):
    x, labels, _ = batch
    signs = 2 * labels - 1
    return -(x.T @ (signs * (signs * (x @ w) < 1))) / len(x)


SEPARATED = X, (X @ OMEGA > 0).astype(int), TOKENS


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("batch_size", [None, 8, 1])
def test_margins_that_are_kept_have_no_slope_and_that_is_fine(decay, dtype, batch_size):
    w = (1e4 * OMEGA).astype(dtype)
    found = ihvp.Objective(
        params=w,
        data=SEPARATED,
        batch_size=batch_size,
        grad=lambda w, b: (hinge(w, b) + decay * w).astype(dtype),
    )
    assert_allclose(found.gradient(), dtype(decay) * w, rtol=1e-5)
    assert_allclose(found.per_example_gradients(), np.tile(dtype(decay) * w, (N, 1)), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("seed", range(8))
def test_fitted_models_whose_gradients_are_rounding(dtype, seed):
    """Interpolation: as many parameters as examples, and residuals of a few units in the last place."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(12, 12)).astype(dtype), rng.normal(size=12).astype(dtype)
    w = np.linalg.solve(x.astype(float), y).astype(dtype)
    found = ihvp.Objective(params=w, data=(x, y), grad=lambda w, b: b[0].T @ (b[0] @ w - b[1]) / len(b[1]))
    found.per_example_gradients()
    assert found.report().additive.outcome == "passed"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_optima(dtype, batch_size):
    x = X.astype(dtype)
    optimum = x.mean(axis=0)
    found = ihvp.Objective(
        params=optimum, data=x, batch_size=batch_size, grad=lambda w, x: w - x.mean(axis=0)
    )
    found.per_example_gradients()
    assert found.report().additive.outcome == "passed"


@pytest.mark.parametrize("batch_size", [None, 7, 1])
def test_copies_of_one_example(batch_size):
    rows = np.repeat(X[:1], N, axis=0), np.ones(N, int), np.ones(N)
    objective(mean, rows, batch_size).per_example_gradients()


@pytest.mark.parametrize("batch_size", [None, 7])
def test_copies_with_numbers_that_the_loss_does_not_read(batch_size):
    rows = np.repeat(X[:1], N, axis=0), np.ones(N, int), np.arange(N)
    objective(mean, rows, batch_size).per_example_gradients()


def test_a_single_example_and_batches_of_one_need_nothing():
    one = tuple(array[:1] for array in data())
    assert objective(over_tokens, one).per_example_gradients().shape == (1, P)
    listed = objective(over_classes, cut(data(), *range(1, N)))
    assert_allclose(listed.gradient(), mean(OMEGA, data()), rtol=1e-12)
    assert listed.report().additive.outcome == "not checked yet"


def test_a_loss_of_the_parameters_alone():
    alone = ihvp.Objective(params=OMEGA, grad=lambda w, batch: w)
    assert_allclose(alone.per_example_gradients(), [OMEGA])


@pytest.mark.parametrize("batch_size", [None, 7, 1])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("grad", "options"),
    [
        (mean, {}),
        (total, {"reduction": "sum"}),
        (over_classes, {"weights": lambda b: CLASS_WEIGHTS[b[1]]}),
        (over_tokens, {"weights": lambda b: b[2]}),
        (lambda w, b: over_tokens(w, b) + 0.3 * w, {"weights": lambda b: b[2]}),
        (lambda w, b: over_tokens(w, b) * b[2].sum(), {"weights": lambda b: b[2], "reduction": "sum"}),
    ],
    ids=["mean", "sum", "classes", "tokens", "regularised tokens", "summed tokens"],
)
def test_what_adds_up_passes(grad, options, dtype, batch_size):
    rows = tuple(array.astype(dtype) if array.dtype.kind == "f" else array for array in data())
    with np.errstate(invalid="ignore", divide="ignore"):
        found = objective(lambda w, b: grad(w, b).astype(dtype), rows, batch_size, dtype, **options)
        found.per_example_gradients()
    assert found.report().additive.outcome == "passed"
    assert found.report().additive.why == ""


def test_a_loss_that_takes_no_part_of_its_batch_is_not_judged():
    def grad(w, batch):
        if len(batch[0]) not in (N, 1):
            raise ValueError("forty rows are expected")
        return mean(w, batch)

    found = objective(grad)
    found.per_example_gradients()
    assert found.report().additive.outcome == "inconclusive"
    assert "forty rows are expected" in str(found.report())


class LowPrecision:
    """Parameters in single precision whose gradients are rounded to eight bits, as by mixed precision."""

    device = "cpu"

    def flatten(self, params):
        return params.copy()

    def unflatten(self, vector, like):
        return vector.copy()

    def grad(self, loss, params, batch):
        # A multiple of the loss has the multiple of its slopes, rounded anew.
        exact = np.array([loss(params + e, batch) - loss(params, batch) for e in np.eye(P, dtype=np.float32)])
        mantissa, exponent = np.frexp(exact)
        return np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)

    def hvp(self, loss, params, batch, v):
        raise NotImplementedError


def test_reduced_precision_inside_the_loss_is_no_dependence():
    def linear(w, batch):
        return float((batch[0] @ w.astype(float)).mean())

    found = ihvp.Objective(linear, OMEGA.astype(np.float32), data(), 8, backend=LowPrecision())
    found.gradient()
    assert "inconclusive (the loss rounds its gradients by" in str(found.report())


def test_reduced_precision_hides_no_dependence():
    def weighted(w, batch):
        weights = CLASS_WEIGHTS[batch[1]]
        return float((weights * (batch[0] @ w.astype(float))).sum() / weights.sum())

    with pytest.raises(LossNotAdditive):
        ihvp.Objective(weighted, OMEGA.astype(np.float32), data(), 8, backend=LowPrecision()).gradient()


# What it costs


class Counter:
    """A gradient that knows on how many examples it was asked for."""

    def __init__(self, grad):
        self.grad, self.rows, self.most = grad, 0, 0

    def __call__(self, w, batch):
        self.rows += len(batch[0])
        self.most = max(self.most, len(batch[0]))
        return self.grad(w, batch)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("verified", [False, True])
@pytest.mark.parametrize(
    ("rows", "batch_size", "first"),
    [(data(), None, N), (data(), 20, 20), (data(), 32, 32), (cut(data(), 16, 32), None, 16)],
    ids=["whole", "cut in half", "cut", "listed"],
)
def test_the_price_is_two_gradients_of_a_batch_and_one_more_in_single_precision(
    dtype, verified, rows, batch_size, first
):
    count = Counter(lambda w, batch: mean(w, batch).astype(dtype))
    found = objective(count, rows, batch_size, dtype)
    if verified:
        found.verify()
    before = count.rows
    found.require_additive()
    basic = 0 if verified else 2 * first
    partitions = 1 if dtype == np.float64 else 2
    # Several small batches stand for one: sixty-four examples at most.
    batches = max(1, 64 // first) if batch_size or isinstance(rows, list) else 1
    assert count.rows - before - basic <= (1 + partitions) * min(4, batches) * first
    after = count.rows
    found.require_additive()
    found.on(data()).require_additive()
    assert count.rows == after
    assert count.most <= first


def test_a_batch_that_is_all_data_was_verified_already():
    count = Counter(mean)
    objective(count).require_additive()
    assert count.rows == 3 * N


LARGE = tuple(np.tile(array, (110, 1)[: array.ndim]) for array in (X, LABELS, TOKENS))


def test_examples_from_all_over_a_large_batch_stand_for_it():
    count = Counter(mean)
    found = objective(count, LARGE)
    found.require_additive()
    assert found.adds_up(100)
    assert count.most == 1024
    assert count.rows <= 6 * 1024
    assert found.report().gradient.outcome == found.report().additive.outcome == "passed"


@pytest.mark.parametrize("grad", [over_classes, over_tokens, negatives, batch_norm, total])
def test_a_large_batch_that_does_not_add_up_is_refused(grad):
    found = objective(grad, LARGE)
    assert not found.adds_up(99)
    with pytest.raises(LossNotAdditive):
        found.require_additive()


def test_a_loss_that_draws_some_of_a_large_batch_is_refused():
    rng = np.random.default_rng(0)

    def drawn(w, batch):
        rows = rng.permutation(len(batch[0]))[:512]
        return mean(w, tuple(array[rows] for array in batch))

    with pytest.raises(NonDeterministicGradient):
        objective(drawn, LARGE).gradient()


def test_a_loss_that_takes_nothing_but_the_whole_of_a_large_batch_is_checked_on_that():
    def fixed(w, batch):
        assert len(batch[0]) == len(LARGE[0])
        return mean(w, batch)

    found = objective(fixed, LARGE)
    found.require_additive()
    assert found.report().gradient.outcome == "passed"
    assert found.report().additive.outcome == "inconclusive"
    assert not found.adds_up(99)


def test_nothing_is_checked_where_no_part_is_needed():
    count = Counter(mean)
    found = objective(count)
    found.gradient()
    assert count.rows == 3 * N
    assert found.report().additive.outcome == "not checked yet"


def test_what_is_known_of_a_loss_serves_other_data_and_other_parameters_but_no_other_loss_or_weights():
    known = objective(mean, batch_size=8)
    known.gradient()
    assert known.on(data()).report().additive.outcome == "passed"
    assert known.at(OMEGA + 1).report().additive.outcome == "passed"
    assert known.on(data(), over_classes).report().additive.outcome == "not checked yet"
    weighted = known.on(data(), weights=lambda batch: CLASS_WEIGHTS[batch[1]])
    with pytest.raises(LossNotAdditive, match="leave weights= out"):
        weighted.gradient()


def test_a_list_of_single_examples_is_looked_through_once(monkeypatch):
    import ihvp.verification.premises as premises

    looks = []
    monkeypatch.setattr(premises, "probes", lambda batches: looks.append(1) or iter(()))
    listed = objective(mean, cut(data(), *range(1, N)))
    listed.gradient()
    listed.per_example_gradients()
    ihvp.OPG(listed).to_dense()
    assert len(looks) == 1


def test_all_errors_are_the_librarys_own():
    assert issubclass(LossNotAdditive, IhvpError)
    assert issubclass(LossIgnoresBatch, ValueError)
