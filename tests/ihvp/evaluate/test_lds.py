"""The linear datamodelling score and leave-one-out correlations, against scipy and a model that is linear."""

import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose, assert_array_equal

import ihvp
from ihvp.errors import FunctionFailed, InvalidOption
from ihvp.evaluate import Agreement, Outcomes, all_but, lds, leave_one_out, random_subsets

N, TESTS = 30, 5


def linear(rng, noise=0.0, count=40, tests=TESTS, scores=None):
    """Scores, and the losses of a model that they describe up to noise."""
    scores = rng.normal(size=(tests, N)) if scores is None else scores
    subsets = random_subsets(N, count, seed=int(rng.integers(1 << 30)))
    losses = -(subsets @ scores.T) + noise * rng.normal(size=(count, len(scores)))
    return scores, Outcomes(subsets, losses)


@pytest.fixture
def noisy():
    return linear(np.random.default_rng(0), noise=3.0)


def test_lds_is_scipys_rank_correlation_of_the_negative_sums(noisy):
    scores, outcomes = noisy
    expected = [
        scipy.stats.spearmanr(-(outcomes.subsets @ row), losses).statistic
        for row, losses in zip(scores, outcomes.losses.T, strict=True)
    ]
    found = lds(scores, outcomes)
    assert_allclose(found.per_test, expected, rtol=1e-12)
    assert_allclose(found.value, np.mean(expected), rtol=1e-12)
    assert 0.3 < found.value < 0.9  # neither end would tell a sign or a mistake in ranks


def test_ties_have_mean_ranks_as_in_scipy(noisy):
    scores, outcomes = noisy
    coarse, losses = np.sign(scores), outcomes.losses.round()
    expected = [
        scipy.stats.spearmanr(-(outcomes.subsets @ row), each).statistic
        for row, each in zip(coarse, losses.T, strict=True)
    ]
    assert_allclose(lds(coarse, Outcomes(outcomes.subsets, losses)).per_test, expected, rtol=1e-12)


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, -1.0)])
def test_scores_of_a_linear_model_are_perfect_with_their_sign(sign, expected):
    scores, outcomes = linear(np.random.default_rng(0))
    found = lds(sign * scores, outcomes)
    assert_allclose(found.per_test, expected, rtol=1e-12)
    assert_allclose(found.standard_error, 0.0, atol=1e-12)


def test_random_scores_have_none():
    scores, outcomes = linear(np.random.default_rng(0), tests=50)
    found = lds(np.random.default_rng(1).normal(size=scores.shape), outcomes)
    assert abs(found.value) < 3 * found.standard_error


def test_lds_with_noise_is_that_of_a_normal_pair():
    """Sums and noise are nearly normal: Spearman's is 6/π arcsin(r/2) of Pearson's r."""
    rng = np.random.default_rng(0)
    scores, outcomes = linear(rng, noise=N**0.5 / 2, count=400, tests=40)
    # A sum over half of the examples, drawn without replacement, has the variance N/4 of the scores.
    r = 1 / np.sqrt(2) * np.ones(1)
    found = lds(scores, outcomes)
    assert_allclose(found.value, (6 / np.pi * np.arcsin(r / 2))[0], atol=4 * found.standard_error)
    assert found.standard_error < 0.03


def test_bootstrap_samples_are_those_of_repeated_trainings(noisy):
    """The first resample, with its repeated subsets written out."""
    scores, outcomes = noisy
    counts = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=200)[0]
    numbers = np.repeat(np.arange(40), counts)
    expected = lds(scores, Outcomes(outcomes.subsets[numbers], outcomes.losses[numbers])).per_test
    assert_allclose(lds(scores, outcomes).resampled[0], expected, rtol=1e-10)


@pytest.mark.parametrize("judge", [lds, leave_one_out])
def test_standard_errors_cover_as_often_as_they_say(judge):
    """Over trainings with the test points fixed, and over both together."""
    rng, repeats = np.random.default_rng(0), 120
    fixed = rng.normal(size=(8, N)) * rng.uniform(0.3, 2, size=(8, 1))
    again, anew = [], []
    for _ in range(repeats):
        again.append(judge(*linear(rng, noise=3.0, scores=fixed)))
        drawn = rng.normal(size=(8, N)) * rng.uniform(0.3, 2, size=(8, 1))
        anew.append(judge(*linear(rng, noise=3.0, scores=drawn)))
    for found, error in ((again, "over_trainings"), (anew, "standard_error")):
        values = np.array([each.value for each in found])
        errors = np.array([getattr(each, error) for each in found])
        assert 0.88 <= np.mean(np.abs(values - values.mean()) <= 1.96 * errors) <= 1.0
        # Neither far too wide.
        assert 0.8 <= errors.mean() / values.std(ddof=1) <= 1.5


def test_the_difference_of_two_methods_is_sharper_than_each(noisy):
    scores, outcomes = noisy
    rng = np.random.default_rng(2)
    good, worse = lds(scores, outcomes), lds(scores + 0.3 * rng.normal(size=scores.shape), outcomes)
    difference = good - worse
    assert_allclose(difference.value, good.value - worse.value, rtol=1e-12)
    assert difference.standard_error < 0.7 * good.standard_error
    assert str(difference).startswith("Difference in LDS")


def test_differences_over_other_test_points_are_refused(noisy):
    scores, outcomes = noisy
    fewer = lds(scores[:2], Outcomes(outcomes.subsets, outcomes.losses[:, :2]))
    with pytest.raises(InvalidOption, match="over the same 5 test points"):
        lds(scores, outcomes) - fewer


def test_leave_one_out_is_pearsons(noisy):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(TESTS, N))
    removed = rng.permutation(N)[:12]
    actual = scores[:, removed] + rng.normal(size=(TESTS, 12))
    found = leave_one_out(scores, Outcomes(all_but(N, removed), 5.0 + actual.T))
    expected = [
        scipy.stats.pearsonr(*pair).statistic for pair in zip(scores[:, removed], actual, strict=True)
    ]
    assert_allclose(found.per_test, expected, rtol=1e-10)


def test_influence_predicts_trainings_without_single_examples(problem):
    removed = range(0, 40, 2)
    outcomes = ihvp.evaluate.retrain(
        problem.objective, problem.train, problem.test, ihvp.evaluate.all_but(40, removed)
    )
    influence = ihvp.Influence(problem.objective)
    assert leave_one_out(influence, outcomes, problem.test).value > 0.97


class Method:
    """What other libraries of attributions look like here."""

    def __init__(self, values):
        self.values_of = values

    def scores(self, test_data, train_data=None, test_loss=None):
        assert test_data == "tests"
        return -self.values_of if test_loss == "negative" else self.values_of


def test_scores_come_in_many_forms(noisy):
    scores, outcomes = noisy
    expected = lds(scores, outcomes).per_test
    labelled = ihvp.influence.Scores(scores, ("test", "train"), 0.0)
    pandas = pytest.importorskip("pandas")
    for form in (labelled, scores.tolist(), pandas.DataFrame(scores)):
        assert_array_equal(lds(form, outcomes).per_test, expected)
    for method in (Method(scores), lambda tests: labelled):
        assert_array_equal(lds(method, outcomes, "tests").per_test, expected)
    assert_array_equal(lds(Method(scores), outcomes, "tests", "negative").per_test, -expected)


def test_scores_are_read_in_parts(noisy, monkeypatch):
    scores, outcomes = noisy
    expected = lds(scores, outcomes).per_test
    monkeypatch.setattr("ihvp.evaluate.scores._NUMBERS", 7 * (TESTS + 40))
    assert_allclose(lds(scores, outcomes).per_test, expected, rtol=1e-12)


def test_a_method_needs_the_test_data(noisy):
    scores, outcomes = noisy
    with pytest.raises(InvalidOption, match="test_data is None; expected that of the outcomes"):
        lds(Method(scores), outcomes)


def test_a_method_that_fails_is_named(noisy):
    with pytest.raises(FunctionFailed, match=r"scores\(test_data\) failed with KeyError"):
        lds(lambda tests: {}["scores"], noisy[1], "tests")


@pytest.mark.parametrize("part", [np.s_[:4], np.s_[:, :-1], np.s_[0]])
def test_scores_of_another_shape_are_refused(noisy, part):
    scores, outcomes = noisy
    with pytest.raises(InvalidOption, match=r"expected an array \(5, 30\)"):
        lds(scores[part], outcomes)


def test_scores_that_are_no_numbers_are_named_by_their_place(noisy):
    scores, outcomes = noisy
    scores[2, 3] = np.nan
    with pytest.raises(InvalidOption, match="nan for test point 2 and training example 3"):
        lds(scores, outcomes)
    with pytest.raises(InvalidOption, match="real numbers"):
        lds(np.full(scores.shape, "a"), outcomes)


@pytest.mark.parametrize("outcomes", [None, np.ones((3, 3))])
def test_what_is_no_outcome_is_refused(outcomes):
    with pytest.raises(InvalidOption, match=r"expected ihvp\.evaluate\.Outcomes"):
        lds(np.ones((3, 3)), outcomes)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9])
def test_constant_scores_are_named(noisy, constant):
    scores, outcomes = noisy
    with pytest.raises(InvalidOption, match="scores is 'the same for every subset"):
        lds(np.full(scores.shape, constant), outcomes)


def test_constant_losses_are_named(noisy):
    scores, outcomes = noisy
    with pytest.raises(InvalidOption, match="losses is 'the same for every subset"):
        lds(scores, Outcomes(outcomes.subsets, np.ones_like(outcomes.losses)))


def test_test_points_that_do_not_vary_do_not_count(noisy):
    scores, outcomes = noisy
    losses, flat = outcomes.losses.copy(), scores.copy()
    losses[:, 1], flat[3] = 0.0, 0.5
    found, whole = lds(flat, Outcomes(outcomes.subsets, losses)), lds(scores, outcomes)
    assert_array_equal(found.defined, [True, False, True, False, True])
    assert_allclose(found.value, whole.per_test[[0, 2, 4]].mean(), rtol=1e-12)
    assert "3 of 5 test points vary" in str(found)
    assert np.isfinite(found.standard_error)


def test_a_handful_of_subsets_is_needed():
    scores, outcomes = linear(np.random.default_rng(0), count=4)
    with pytest.raises(InvalidOption, match="4 trainings'; expected at least 5"):
        lds(scores, outcomes)


@pytest.mark.parametrize("varying", [1, 5])
def test_bootstrap_samples_of_few_trainings_may_not_vary(varying):
    """As here, where most of the losses are equal."""
    losses = np.zeros((5, 1))
    losses[:varying, 0] = np.arange(1, varying + 1)
    scores, outcomes = linear(np.random.default_rng(0), count=5, tests=1)
    found = lds(scores, Outcomes(outcomes.subsets, losses))
    assert np.isnan(found.resampled).any() or varying == 5
    assert 0 < found.standard_error < 1


def test_one_test_point_has_the_error_over_trainings_alone(noisy):
    scores, outcomes = noisy
    found = lds(scores[:1], Outcomes(outcomes.subsets, outcomes.losses[:, :1]))
    assert found.over_tests == 0
    assert found.standard_error == found.over_trainings > 0


def test_an_agreement_is_a_series_and_a_picture(noisy):
    pytest.importorskip("pandas")
    found = lds(*noisy)
    series = found.to_pandas()
    assert (series.name, series.index.name) == ("LDS", "test")
    assert_array_equal(series.to_numpy(), found.per_test)
    ax = found.plot(label="influence")
    found.plot(ax)
    assert next(text.get_text() for text in ax.get_legend().get_texts()) == "influence"
    assert len({line.get_color() for line in ax.lines}) == 2
    ax.figure.clear()


def test_agreements_do_not_add_up():
    one = Agreement("LDS", np.ones(2), np.ones((2, 2)))
    with pytest.raises(TypeError):
        one - 1
