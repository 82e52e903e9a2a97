"""eigsh against dense decompositions, and its products against those of scipy's."""

import functools

import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import ihvp
from ihvp._problems import TanhMLP
from ihvp.errors import EigenpairsNotConverged, InvalidOption, NonFinite, NotSymmetric, VectorError

KEYS = {"LA": lambda values: values, "SA": lambda values: -values, "LM": np.abs}


class Counted(ihvp.Dense):
    """Counts the vectors that it multiplied; the first ``sound`` products are right, the others disturbed."""

    def __init__(self, matrix, sound=np.inf):
        super().__init__(matrix)
        self.products, self.sound = 0, sound

    def apply(self, v):
        self.products += 1 if v.ndim == 1 else v.shape[1]
        return super().apply(v) + (self.products > self.sound) * 1e-3


class Noisy(ihvp.Dense):
    """Products with a random error of known relative size."""

    def __init__(self, matrix, noise):
        super().__init__(matrix)
        self.noise, self._rng = noise, np.random.default_rng(0)

    def apply(self, v):
        product = super().apply(v)
        error = self._rng.normal(size=product.shape)
        return product + self.noise * np.linalg.norm(product, axis=0) * error / np.linalg.norm(error, axis=0)

    def product_error(self, v):
        return self.noise * float(np.linalg.norm(self.matrix @ v))


def symmetric(rng, values):
    basis = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


def wanted(spectrum, k, which):
    """The k wanted values of a spectrum, descending."""
    return np.sort(spectrum[np.argsort(-KEYS[which](spectrum), kind="stable")[:k]])[::-1]


def true_residuals(matrix, pairs):
    return np.linalg.norm(matrix @ pairs.vectors - pairs.vectors * pairs.values, axis=0)


@functools.cache
def digits():
    """The Hessian of a briefly trained 64-32-10 network on handwritten digits, with its eigenvalues."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    network = TanhMLP(64, 32, 10, 1)
    network.batch = x, targets = images[:600] / 16, np.eye(10)[labels[:600]]
    point, first, second = network.flat(network.params), 0.0, 0.0
    for step in range(1, 41):  # Adam
        gradient = network.flat_gradient(point)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        point = point - 0.01 * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    network.params = params = network.structured(point)
    hidden = np.tanh(x @ params["w1"] + params["b1"])
    p = np.exp(hidden @ params["w2"] + params["b2"])
    p /= p.sum(axis=1, keepdims=True)
    outer = (p - targets) / len(x)
    inner, slope = outer @ params["w2"].T, 1 - hidden**2

    def product(v):
        """Pearlmutter's R-operator."""
        r = network.structured(v)
        hidden_r = slope * (x @ r["w1"] + r["b1"])
        outputs_r = hidden_r @ params["w2"] + hidden @ r["w2"] + r["b2"]
        outer_r = p * (outputs_r - np.sum(p * outputs_r, axis=1, keepdims=True)) / len(x)
        inner_r = (outer_r @ params["w2"].T + outer @ r["w2"].T) * slope - 2 * inner * hidden * hidden_r
        return network.flat(
            {
                "b1": inner_r.sum(axis=0),
                "b2": outer_r.sum(axis=0),
                "w1": x.T @ inner_r,
                "w2": hidden_r.T @ outer + hidden.T @ outer_r,
            }
        )

    probe = np.random.default_rng(0).standard_normal(network.size)
    assert_allclose(product(probe), network.hvp(probe), atol=1e-14)
    matrix = np.stack([product(column) for column in np.eye(network.size)])
    matrix = (matrix + matrix.T) / 2
    return matrix, np.linalg.eigvalsh(matrix)


@pytest.mark.parametrize(("which", "tol"), [("LA", 1e-5), ("LA", 1e-8), ("LM", 1e-8), ("LA", 1e-10)])
@pytest.mark.parametrize(("confidence", "price"), [(None, 1.0), (0.999, 2.0)])
def test_ten_pairs_of_a_network_are_exact_at_a_price_relative_to_scipys(which, tol, confidence, price):
    matrix, spectrum = digits()
    assert matrix.shape == (2410, 2410)
    start = np.random.default_rng(1).standard_normal(2410)
    ours, scipys = Counted(matrix), Counted(matrix)
    pairs = ihvp.eigsh(ours, 10, which, tol=tol, v0=start, confidence=confidence)
    scipy.sparse.linalg.eigsh(scipys.to_scipy(), 10, which=which, tol=tol, v0=start)
    assert_allclose(pairs.values, wanted(spectrum, 10, which), rtol=1e-8)
    assert np.all(true_residuals(matrix, pairs) <= tol * np.abs(spectrum).max())
    assert np.all(pairs.converged)
    assert pairs.matvecs == ours.products <= price * scipys.products


def test_ten_smallest_of_a_network_are_exact_and_cost_no_more_products_than_scipys():
    # The negative end of the spectrum is dense: scipy needs thousands of products, and is given ours.
    matrix, spectrum = digits()
    operator, tol = Counted(matrix), 1e-8
    pairs = ihvp.eigsh(operator, 10, "SA", tol=tol)
    assert_allclose(pairs.values, wanted(spectrum, 10, "SA"), rtol=1e-8)
    assert np.all(true_residuals(matrix, pairs) <= tol * np.abs(spectrum).max())
    scipys = Counted(matrix)

    def product(v):
        if scipys.products > operator.products:
            raise StopIteration
        return scipys.apply(v)

    with pytest.raises(StopIteration):
        scipy.sparse.linalg.eigsh(
            scipy.sparse.linalg.LinearOperator(matrix.shape, matvec=product, dtype=float),
            10,
            which="SA",
            tol=tol,
        )


def test_a_restarted_basis_of_scipys_size_costs_no_more_products_than_scipys(rng):
    matrix = symmetric(rng, np.geomspace(1, 1e-3, 300))
    start = rng.normal(size=300)
    ours, scipys = Counted(matrix), Counted(matrix)
    pairs = ihvp.eigsh(ours, 6, ncv=20, tol=1e-9, v0=start, confidence=None)
    scipy.sparse.linalg.eigsh(scipys.to_scipy(), 6, which="LA", ncv=20, tol=1e-9, v0=start)
    assert ours.products > 60  # it did restart
    assert ours.products <= scipys.products
    assert_allclose(pairs.values, np.geomspace(1, 1e-3, 300)[:6], rtol=1e-10)


SPECTRA = st.one_of(
    st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=120),
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=120),
    st.lists(st.sampled_from([1.0, 1.0 + 1e-9, 1.0 - 1e-7, -2.0, 0.0]), min_size=1, max_size=120),
    st.integers(1, 120).map(lambda size: [0.0] * size),
    st.integers(1, 120).map(lambda size: [*np.repeat([5.0, 4.0, -5.0], 4), *np.linspace(-1, 1, size)]),
)


@settings(max_examples=150)
@given(SPECTRA, st.integers(1, 12), st.sampled_from(sorted(KEYS)), st.integers(0, 99), st.integers(-8, 8))
def test_random_spectra_with_multiples_and_clusters_are_found_complete(values, k, which, seed, exponent):
    values = np.asarray(values) * 10.0**exponent
    k = min(k, values.size)
    matrix = symmetric(np.random.default_rng(seed), values)
    pairs = ihvp.eigsh(ihvp.Dense(matrix), k, which, confidence=0.99999, seed=seed)
    size = np.abs(values).max()
    # Of equal magnitudes either sign may be the wanted one.
    assert_allclose(
        np.sort(KEYS[which](pairs.values)), np.sort(KEYS[which](wanted(values, k, which))), atol=1e-9 * size
    )
    assert np.all(true_residuals(matrix, pairs) <= 4e-11 * size)
    assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(k), atol=1e-12)
    assert np.all(np.diff(pairs.values) <= 0)


def test_confidence_finds_the_copies_that_one_krylov_space_cannot_hold(rng):
    values = np.concatenate([[3.0, 3.0, 3.0, 1.0], np.geomspace(0.1, 1e-6, 196)])
    matrix = ihvp.Dense(symmetric(rng, values))
    assert_allclose(ihvp.eigsh(matrix, 3, tol=1e-6, confidence=0.999).values, [3.0, 3.0, 3.0], rtol=1e-12)
    # Without it, the certificate is about each pair.
    single = ihvp.eigsh(matrix, 2, tol=1e-6, confidence=None)
    assert np.all(single.converged)
    assert_allclose(single.values, [3.0, 1.0], rtol=1e-12)


def test_an_invariant_subspace_is_left_without_being_asked():
    spectrum = np.repeat([4.0, 3.0, 1.0], 50)
    pairs = ihvp.eigsh(ihvp.Dense(np.diag(spectrum)), 6)
    assert_allclose(pairs.values, np.full(6, 4.0), rtol=1e-12)


def test_a_start_inside_an_invariant_subspace_hides_nothing():
    pairs = ihvp.eigsh(ihvp.Dense(np.diag(np.arange(200.0))), 2, v0=np.eye(200)[3])
    assert_allclose(pairs.values, [199.0, 198.0], rtol=1e-12)


@pytest.mark.parametrize("k", [1, 20, 65, 66])
def test_k_up_to_p_works(rng, k):
    spectrum = rng.normal(size=66)
    matrix = symmetric(rng, spectrum)
    pairs = ihvp.eigsh(ihvp.Dense(matrix), k)
    assert_allclose(pairs.values, np.sort(spectrum)[::-1][:k], atol=1e-12)
    assert pairs.vectors.shape == (66, k)
    assert np.all(pairs.residuals < 1e-9)


def test_a_matrix_of_one_number_has_one_pair():
    pairs = ihvp.eigsh(ihvp.Dense(np.array([[-2.0]])), 1)
    assert (pairs.values.tolist(), abs(pairs.vectors[0, 0]), pairs.residuals.tolist()) == ([-2.0], 1.0, [0.0])


@pytest.mark.parametrize("k", [5, 120])
def test_low_precision_keeps_its_dtype_and_reaches_its_own_accuracy(rng, k):
    values = np.geomspace(5, 1e-3, 200)
    matrix = symmetric(rng, values).astype(np.float32)
    pairs = ihvp.eigsh(ihvp.Dense(matrix), k)
    assert pairs.vectors.dtype == np.float32
    assert np.all(pairs.converged)
    assert_allclose(pairs.values, np.linalg.eigvalsh(matrix.astype(float))[::-1][:k], atol=5e-6)


@pytest.mark.parametrize("k", [8, 150])
def test_the_reported_residuals_are_the_true_ones(rng, k):
    matrix = symmetric(rng, np.geomspace(1, 1e-2, 200))
    pairs = ihvp.eigsh(ihvp.Dense(matrix), k, tol=1e-6)
    assert_allclose(pairs.residuals, true_residuals(matrix, pairs), rtol=0.5, atol=2e-14)


def test_products_that_change_do_not_pass_as_converged(rng):
    matrix = symmetric(rng, np.geomspace(1, 1e-3, 200))
    products = ihvp.eigsh(Counted(matrix), 5, tol=1e-8).matvecs
    with pytest.raises(EigenpairsNotConverged, match=r"5 of 5.*differ between calls") as caught:
        ihvp.eigsh(Counted(matrix, sound=products - 1), 5, tol=1e-8)
    assert np.all(caught.value.eigenpairs.residuals > 1e-3)
    assert caught.value.eigenpairs.matvecs == products + 5


@pytest.mark.parametrize("k", [5, 150])
def test_the_default_tolerance_allows_for_the_noise_of_the_products(rng, k):
    values = np.geomspace(5, 1e-3, 200)
    operator = Noisy(symmetric(rng, values), 1e-7)
    pairs = ihvp.eigsh(operator, k)
    assert np.all(pairs.converged)
    assert pairs.residuals.max() > 1e-8
    assert_allclose(pairs.values, values[:k], atol=1e-5)
    with pytest.raises(EigenpairsNotConverged, match="noise floor"):
        ihvp.eigsh(operator, k, tol=1e-10)


@pytest.mark.parametrize("k", [5, 150])
def test_an_asymmetric_matrix_does_not_pass(rng, k):
    matrix = symmetric(rng, np.geomspace(5, 1e-3, 200))
    matrix[3, 100] += 0.5
    with pytest.raises(EigenpairsNotConverged, match="not symmetric"):
        ihvp.eigsh(ihvp.Dense(matrix), k)
    with pytest.raises(NotSymmetric):
        ihvp.eigsh(ihvp.Dense(matrix), k, check=True)


def test_too_few_restarts_are_an_error_that_holds_what_was_found(rng):
    matrix = symmetric(rng, np.linspace(0, 1, 300))
    with pytest.raises(EigenpairsNotConverged, match=r"after 2 restarts.*Raise max_restarts") as caught:
        ihvp.eigsh(ihvp.Dense(matrix), 4, ncv=12, max_restarts=2)
    partial = caught.value.eigenpairs
    assert not np.any(partial.converged)
    assert_allclose(partial.residuals, true_residuals(matrix, partial), rtol=1e-10)
    returned = ihvp.eigsh(ihvp.Dense(matrix), 4, ncv=12, max_restarts=2, on_failure="return")
    assert_allclose(returned.values, partial.values)


@pytest.mark.parametrize("k", [3, 60])
def test_a_product_that_is_not_finite_is_an_error(k):
    matrix = np.eye(100)
    matrix[5, 5] = np.nan
    with pytest.raises(NonFinite):
        ihvp.eigsh(ihvp.Dense(matrix), k)


def test_the_callback_hears_of_falling_residuals(rng):
    steps = []
    pairs = ihvp.eigsh(ihvp.Dense(symmetric(rng, np.geomspace(1, 1e-3, 200))), 5, callback=steps.append)
    assert [step.iteration for step in steps] == list(range(5, pairs.matvecs))
    assert steps[-1].active == 0
    assert steps[-1].residual <= 4e-11 < steps[0].residual


def test_the_seed_decides_the_result(rng):
    operator = ihvp.Dense(symmetric(rng, np.geomspace(1, 1e-3, 200)))
    first, second, other = (ihvp.eigsh(operator, 3, seed=seed).vectors for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"k": 0}, "k is 0; expected an integer from 1 to P = 50"),
        ({"k": 51}, "from 1 to P = 50"),
        ({"k": 2.0}, "from 1 to P = 50"),
        ({"which": "SM"}, "'LA'"),
        ({"tol": 0.0}, "between 0 and 1"),
        ({"k": 5, "ncv": 6}, r"from 7 \(k \+ 2\) to P = 50"),
        ({"ncv": 51}, "to P = 50"),
        ({"max_restarts": -1}, "≥ 0"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"seed": -1}, "≥ 0"),
        ({"on_failure": "ignore"}, "'raise' or 'return'"),
    ],
)
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(InvalidOption, match=text):
        ihvp.eigsh(ihvp.Dense(np.eye(50)), **options)


@pytest.mark.parametrize("v0", [np.zeros(50), np.full(50, np.nan), np.ones((50, 1)), np.ones(49)])
def test_a_start_that_is_no_direction_is_refused(v0):
    with pytest.raises(VectorError):
        ihvp.eigsh(ihvp.Dense(np.eye(50)), 2, v0=v0)


def test_the_start_is_not_changed(rng):
    start = rng.normal(size=200)
    before = start.copy()
    ihvp.eigsh(ihvp.Dense(symmetric(rng, np.geomspace(1, 1e-3, 200))), 3, v0=start)
    assert np.array_equal(start, before)
