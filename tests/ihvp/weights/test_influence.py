"""Influence of weighted examples beside ``w_i/W ∇L(z_j)ᵀ (H + λI)⁻¹ ∇C_i`` by dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ihvp
from ihvp.errors import LossNotAdditive, StoreMismatch, WeightError

pytestmark = pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
DAMPING = 3.0


@pytest.fixture
def influence(objective):
    return of(objective)


def of(objective, **options):
    return ihvp.Influence(objective, DAMPING, ihvp.CG(rtol=1e-12), **options)


def close(found, expected):
    assert_allclose(np.asarray(found), expected, rtol=1e-8, atol=1e-12)


def test_scores(influence, problem):
    close(influence.scores(problem.test), problem.scores(DAMPING))


def test_scores_of_many_test_points(problem, form, loss, backend):
    """More than are multiplied without forming the gradients."""
    rng = np.random.default_rng(1)
    test = rng.normal(size=(40, 4)), rng.normal(size=40), np.ones(40)
    close(of(problem.objective(form, loss, backend)).scores(test), problem.scores(DAMPING, test))


def test_top_k(influence, problem):
    expected = problem.scores(DAMPING)
    found = influence.top_k(problem.test, 3, which="helpful")
    assert_array_equal(found.indices, np.argsort(-expected, axis=1, kind="stable")[:, :3])


def test_self_influence(influence, problem):
    close(influence.self_influence(), self_scores(problem))


def self_scores(problem):
    slopes, inverse = problem.slopes(problem.data), np.linalg.inv(problem.hessian() + DAMPING * np.eye(4))
    return problem.shares * np.einsum("ip,pq,iq->i", slopes, inverse, slopes)


def test_groups(influence, problem):
    expected = problem.scores(DAMPING)
    close(influence.group([[1, 5], [0, 2], [3]], problem.test), group_sums(expected, [[1, 5], [0, 2], [3]]))
    close(influence.group([1, 5, 0], problem.test), expected[:, [1, 5, 0]].sum(axis=1))


def group_sums(scores, groups):
    return np.stack([scores[:, group].sum(axis=1) for group in groups], axis=1)


def test_groups_by_a_newton_step(influence, problem):
    groups = [[1, 5], [0, 2], [3], [0, 8, 9]]
    close(influence.group(groups, problem.test, second_order=True), newton_steps(problem, groups))


def newton_steps(problem, groups):
    w, columns = problem.data[2], []
    for group in groups:
        part = tuple(array[group] for array in problem.data)
        share = part[2].sum() / w.sum()
        remaining = problem.hessian() + DAMPING * np.eye(4)
        if share:
            remaining -= share * problem.hessian(part)
        step = np.linalg.solve(remaining, problem.shares[group] @ problem.slopes(part))
        columns.append(problem.slopes(problem.test) @ step)
    return np.stack(columns, axis=1)


def test_new_points(influence, problem):
    new = problem.test[0][:3] * 0.7, problem.test[1][:3], np.array([2.0, 0.0, 5.0])
    close(influence.of_new_points(new, problem.test), problem.scores(DAMPING, train=new))


def test_some_of_the_training_examples_keep_their_scores(influence, problem):
    part = tuple(array[4:9] for array in problem.data)
    close(influence.scores(problem.test, part), problem.scores(DAMPING)[:, 4:9])


def test_kept_inverse_products(influence, problem):
    products = influence.inverse_products(problem.test)
    close(influence.scores(products), problem.scores(DAMPING))


def test_derivatives_by_the_inputs_at_fixed_weights(objective, problem):
    x, y, weights = of(objective).on_inputs(problem.test)
    assert weights is None
    inverse = np.linalg.inv(problem.hessian() + DAMPING * np.eye(4))
    directions, step = problem.slopes(problem.test) @ inverse, 1e-5

    def scores(x, y):
        return directions @ (problem.slopes((x, y, problem.data[2])) * problem.shares[:, None]).T

    for column in range(4):
        shift = step * np.eye(4)[column]
        plain = problem.data[0], problem.data[1]
        change = scores(plain[0] + shift, plain[1]) - scores(plain[0] - shift, plain[1])
        assert_allclose(x[:, :, column], change / (2 * step), rtol=1e-6, atol=1e-8)
    assert_allclose(
        y, (scores(plain[0], plain[1] + step) - scores(plain[0], plain[1] - step)) / (2 * step), atol=1e-8
    )
    assert_array_equal(x[:, problem.data[2] == 0], 0)


def test_derivatives_of_a_backend_that_has_them(problem, form, loss):
    """They come from whole batches, in which an example is the part w_i / W_batch."""
    plain = problem.objective(form, loss)

    class WithInputs(type(plain.backend)):
        def input_derivatives(self, loss, params, batch, v):
            x, _, w = batch
            t = np.tanh(x @ params)
            share = np.full(len(w), np.nan) if not loss.divisor(batch) else w / loss.divisor(batch)
            _, first, second = loss.terms(params, batch)
            with np.errstate(invalid="ignore"):
                by_x = share[:, None, None] * (
                    second[:, None, None] * params[:, None] * (x @ v)[:, None] + first[:, None, None] * v
                )
                return by_x.transpose(2, 0, 1), (-share[:, None] * (1 - t**2)[:, None] * (x @ v)).T, None

    expected = of(plain).on_inputs(problem.test)
    found = of(problem.objective(form, loss, WithInputs())).on_inputs(problem.test)
    for part, known in zip(found[:2], expected[:2], strict=True):
        assert_allclose(part, known, rtol=1e-6, atol=1e-8)
    assert found[2] is None


def test_a_test_loss_of_its_own_knows_no_weights(problem, form, backend):
    class Linear:
        def __call__(self, omega, batch):
            return (batch[0] @ omega).mean()

        def gradient(self, omega, batch):
            return batch[0].mean(axis=0)

    found = of(problem.objective(form, None, backend)).scores(problem.test, test_loss=Linear())
    inverse = np.linalg.inv(problem.hessian() + DAMPING * np.eye(4))
    close(found, problem.test[0] @ inverse @ (problem.slopes(problem.data) * problem.shares[:, None]).T)


def test_a_test_loss_need_not_be_a_plain_mean(problem, backend):
    """Each test point is asked about alone: what it weighs in a mean, or a sum, does not matter."""
    test = (*problem.test[:2], np.array([1.0, 2.0, 3.0, 1.0, 3.0]))
    influence = of(problem.objective("whole", None, backend))
    close(influence.scores(test, test_loss=type(problem.objective().loss)()), problem.scores(DAMPING, test))


def test_a_test_loss_that_compares_its_examples_is_refused(problem):
    class Centred:
        def __call__(self, omega, batch):
            return float(np.var(batch[0] @ omega))

        def gradient(self, omega, batch):
            x = batch[0] - batch[0].mean(axis=0)
            return x.T @ (x @ omega) / len(x)

    with pytest.raises(LossNotAdditive, match="examples depend on each other"):
        of(problem.objective()).scores(problem.test, test_loss=Centred())


def test_a_regulariser_stays_with_what_remains(problem, form):
    """``train_loss`` goes away with an example, by its weight."""
    plain = problem.objective().loss

    class Regularised(type(plain)):
        def __call__(self, omega, batch):
            return super().__call__(omega, batch) + omega @ omega

        def gradient(self, omega, batch):
            return super().gradient(omega, batch) + 2 * omega

        def product(self, omega, batch, v):
            return super().product(omega, batch, v) + 2 * v

    test = (*problem.test[:2], np.ones(5))
    found = of(problem.objective(form, Regularised()), train_loss=plain).scores(test, test_loss=plain)
    close(found, problem.scores(DAMPING + 2, test))


@pytest.fixture
def stored(problem, tmp_path):
    def run(**options):
        return of(problem.objective(**options)).scores(problem.test, out=tmp_path / "scores")

    run()
    return run


def test_a_store_belongs_to_its_weights(stored):
    with pytest.raises(StoreMismatch, match="weights"):
        stored(weights=lambda batch: 2 * batch[2])


def test_the_same_weights_find_their_store(stored, problem):
    close(stored(weights=lambda batch: batch[2]), problem.scores(DAMPING))


def test_leave_one_out_predicts_and_finds_the_change(problem, loss):
    """The terms that remain over the W of before."""
    x, y, w = problem.data
    w[w == 0] = 1.0
    ridge = 0.5 * np.eye(4)

    def optimum(removed):
        kept = w.copy()
        kept[removed] = 0
        return np.linalg.solve((x.T * kept) @ x / w.sum() + ridge, x.T @ (kept * y) / w.sum())

    def gradient(omega, batch):
        x, y, w = batch
        mean = x.T @ (w * (x @ omega - y)) / w.sum() + ridge @ omega
        return mean * (w.sum() if loss.reduction == "sum" else 1)

    def value(omega, batch):
        x, y, w = batch
        mean = (w * (x @ omega - y) ** 2).sum() / w.sum() / 2 + omega @ ridge @ omega / 2
        return mean * (w.sum() if loss.reduction == "sum" else 1)

    def removed_gradient(omega, batch):
        return gradient(omega, batch) - ridge @ omega * (batch[2].sum() if loss.reduction == "sum" else 1)

    objective = ihvp.Objective(
        value, optimum([]), (x, y, w), 6, loss.reduction, grad=gradient, weights=lambda batch: batch[2]
    )
    test = (*problem.test[:2], np.array([1.0, 2.0, 4.0, 1.0, 3.0]))
    found = ihvp.leave_one_out(
        objective,
        lambda removed, start: optimum(removed),
        range(23),
        test,
        train_loss=removed_gradient,
        solver=ihvp.CG(rtol=1e-8),
        second_order=True,
    )
    changed = [value(optimum([i]), test) - value(optimum([]), test) for i in range(23)]
    divisor = test[2].sum() if loss.reduction == "sum" else 1
    assert_allclose(found.actual, np.array(changed) / divisor, rtol=1e-9, atol=1e-14)
    assert found.pearson.value > 0.995
    assert found.slope == pytest.approx(1, abs=0.05)


def test_test_points_of_leave_one_out_count_by_the_weights_that_the_test_loss_divides_by(problem):
    objective, test = problem.objective(), (*problem.test[:2], np.array([1.0, 2.0, 4.0, 1.0, 3.0]))
    options = {"damping": DAMPING, "solver": ihvp.CG(rtol=1e-12)}
    found = ihvp.leave_one_out(
        objective, lambda removed, start: start, [1, 2], test, test_loss=type(objective.loss)(), **options
    )
    expected = test[2] / test[2].sum() @ problem.scores(DAMPING, test)[:, [1, 2]]
    assert_allclose(found.predicted, expected, rtol=1e-8)


def test_first_examples_without_weight_are_no_sign_of_a_missed_optimum(monkeypatch, recwarn):
    monkeypatch.setattr("ihvp.influence.optimum._EXAMPLES", 4)
    x = np.random.default_rng(0).normal(size=(20, 3))
    w = np.repeat([0.0, 1.0], [6, 14])
    objective = ihvp.Objective(
        params=x[6:].mean(axis=0) + 1e-3,
        data=(x, w),
        grad=lambda omega, batch: batch[1] @ (omega - batch[0]) / batch[1].sum(),
        weights=lambda batch: batch[1],
    )
    ihvp.Influence(objective).self_influence()
    assert not recwarn.list


def test_test_points_that_all_weigh_nothing_have_no_mean(problem):
    test = (*problem.test[:2], np.zeros(5))
    influence = of(problem.objective())
    assert_array_equal(np.asarray(influence.scores(test)), 0)
    with pytest.raises(WeightError, match="weights of all examples are 0"):
        ihvp.leave_one_out(problem.objective(), lambda removed, start: start, [1], test, damping=DAMPING)


def test_a_loss_is_checked_once_for_all_questions(problem):
    sizes = []

    class Counting(type(problem.objective().backend)):
        def grad(self, loss, params, batch):
            sizes.append(len(batch[0]))
            return super().grad(loss, params, batch)

    loss = type(problem.objective().loss)
    influence = of(problem.objective(backend=Counting()), train_loss=loss())
    products = influence.inverse_products(problem.test)
    influence.scores(products)
    before = len(sizes)
    influence.scores(products)
    influence.self_influence()
    assert len(sizes) == before


def test_batches_that_are_lists_of_arrays(problem):
    """As loaders collate them: a list in the place of a batch is no list of batches."""
    batches = [list(batch) for batch in problem.batched("list")[0]]
    loader = type(problem.batched("loader")[0])(batches)
    for data in (batches, loader):
        influence = of(problem.objective().on(data))
        close(influence.scores([list(problem.test)]), problem.scores(DAMPING))
        close(influence.self_influence(), self_scores(problem))
        expected = group_sums(problem.scores(DAMPING), [[1, 5], [3]])
        close(influence.group([[1, 5], [3]], [list(problem.test)]), expected)
        steps = influence.group([[1, 5], [3]], [list(problem.test)], second_order=True)
        close(steps, newton_steps(problem, [[1, 5], [3]]))
        x, _, _ = influence.on_inputs([list(problem.test)])
        close(x, of(problem.objective()).on_inputs(problem.test)[0])
