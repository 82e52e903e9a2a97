"""K-FAC and EK-FAC against dense Gauss–Newton matrices, sums by hand, and identities that define them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import ihvp
from ihvp.errors import InvalidOption

COUNT = 18


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def labels(count=COUNT):
    return torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(1))


def entropy(outputs, batch):
    return functional.cross_entropy(outputs, batch[1])


def squares(outputs, batch):
    return functional.mse_loss(outputs, batch[1])


def objective(net, x, y, loss=entropy, **options):
    return ihvp.Objective(loss, net.double(), (x, y), predict=lambda net, batch: net(batch[0]), **options)


class Attention(nn.Module):
    """Tokens, positions that all examples share, packed projections, a layer used twice."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, 4), nn.Embedding(5, 4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.twice, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        h = h + self.attend(h, h, h, need_weights=False)[0]
        return self.out(self.twice(torch.tanh(self.twice(h))).mean(1))


class Recurrent(nn.Module):
    """Steps that come place by place, not example by example."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 4)
        steps = x.transpose(0, 1)
        projected = self.cell(torch.cat([steps, steps[..., :3]], -1).reshape(-1, 6)).reshape(
            *steps.shape[:2], 4
        )
        for step in projected:
            h = torch.tanh(h + step)
        return self.out(h)


class FirstToken(nn.Module):
    """Attention computes place by place; only rows of the first place have a derivative."""

    def __init__(self):
        super().__init__()
        self.attend, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.attend(x, x, x, need_weights=False)[0][:, 0])


class Sorted(nn.Module):
    """Examples in another order inside, but for the first."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + x[1:, 0].argsort()])
        return self.out(torch.tanh(self.inner(x[order]))[order.argsort()])


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.lower, self.upper = nn.Linear(5, 4), nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return self.upper(torch.tanh(self.lower(x))).mean(1)


CASES = {
    "multilayer": lambda: (nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), random(COUNT, 5)),
    "widening": lambda: (nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)), random(COUNT, 3)),
    "normalised": lambda: (
        nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.ReLU(inplace=True), nn.Linear(4, 3)),
        random(COUNT, 5),
    ),
    "convolution": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=2, padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)
        ),
        random(COUNT, 2, 5, 5),
    ),
    "one dimension": lambda: (
        nn.Sequential(nn.Conv1d(2, 3, 3, dilation=2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3)),
        random(COUNT, 2, 7),
    ),
    "three dimensions": lambda: (
        nn.Sequential(nn.Conv3d(1, 2, 2, stride=(1, 2, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)),
        random(COUNT, 1, 3, 3, 3),
    ),
    "attention": lambda: (
        Attention(),
        torch.randint(0, 7, (COUNT, 5), generator=torch.Generator().manual_seed(2)),
    ),
    "recurrent": lambda: (Recurrent(), random(COUNT, 4, 3)),
    "shared": lambda: (Shared(), random(COUNT, 6, 5)),
    "first token": lambda: (FirstToken(), random(COUNT, 3, 4)),
    "sorted": lambda: (Sorted(), random(COUNT, 5)),
    "transformer": lambda: (
        nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(12, 3)
        ),
        random(COUNT, 3, 4),
    ),
}


def case(name, **options):
    torch.manual_seed(0)
    net, x = CASES[name]()
    return objective(net, x, labels(), **options)


def blocks_of(matrix, operator):
    """The matrix without its entries between blocks."""
    found = torch.zeros_like(matrix)
    for block in operator.blocks:
        numbers = torch.cat([torch.arange(place.start, place.stop) for place in block.slices])
        found[numbers[:, None], numbers] = matrix[numbers[:, None], numbers]
    return found


@pytest.mark.parametrize("name", CASES)
def test_eigenvalues_of_ekfac_are_the_diagonal_of_gauss_newton_in_the_factors_basis(name):
    o = case(name)
    gauss_newton, kfac, ekfac = ihvp.GaussNewton(o).to_dense(), ihvp.KFAC(o), ihvp.EKFAC(o)
    assert ekfac.trace() == pytest.approx(torch.trace(gauss_newton).item(), rel=1e-10)
    # Rotations by columns of functions of the operator: f = 1 on one eigenvalue at a time.
    for block in ekfac.blocks:
        if not hasattr(block, "rotate"):
            continue
        identity = torch.eye(o.num_params, dtype=torch.float64)
        rotated = block.rotate(block.layer.read(identity)).reshape(o.num_params, -1)
        diagonal = (rotated * (gauss_newton @ rotated)).sum(0)
        torch.testing.assert_close(diagonal, block.values.reshape(-1), rtol=1e-9, atol=1e-12)
    exact = blocks_of(gauss_newton, kfac)
    assert torch.linalg.norm(ekfac.to_dense() - exact) <= torch.linalg.norm(kfac.to_dense() - exact) * (
        1 + 1e-12
    )


def test_the_corrected_eigenvalues_are_never_further_from_the_curvature():
    """By the Frobenius norm, for 50 random networks: three layers, or a convolution and a layer."""
    better = 0
    for seed in range(50):
        torch.manual_seed(seed)
        widths = torch.randint(1, 5, (2,)).tolist()
        if seed % 2:
            layers = [nn.Linear(4, widths[0]), nn.Tanh(), nn.Linear(*widths), nn.ReLU()]
            x, last = torch.randn(6, 4), widths[1]
        else:
            layers = [nn.Conv1d(2, widths[0], 2), nn.Tanh(), nn.Flatten()]
            x, last = torch.randn(6, 2, 4), 3 * widths[0]
        o = objective(nn.Sequential(*layers, nn.Linear(last, 3)), x.double(), labels(6))
        gauss_newton = ihvp.GaussNewton(o).to_dense()
        plain, corrected = (
            torch.linalg.norm(kind(o).to_dense() - gauss_newton) for kind in (ihvp.KFAC, ihvp.EKFAC)
        )
        assert corrected <= plain + 1e-12 * torch.linalg.norm(gauss_newton)
        better += bool(corrected < 0.999 * plain)
    assert better > 30


@pytest.mark.parametrize("name", CASES)
def test_each_parameter_is_covered_once_and_named(name):
    o = case(name)
    operator = ihvp.KFAC(o)
    counts = np.zeros(o.num_params, int)
    for block in operator.blocks:
        for place in block.slices:
            counts[place] += 1
        assert block.name in operator.report()
    assert np.all(counts == 1)


@pytest.mark.parametrize("cls", [ihvp.KFAC, ihvp.EKFAC])
@pytest.mark.parametrize("depth", [1, 3])
def test_linear_networks_with_squared_error_are_exact(cls, depth):
    torch.manual_seed(0)
    widths = [5, 4, 6, 3] if depth == 3 else [5, 3]
    net = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(widths)))
    o = objective(net, random(COUNT, 5), random(COUNT, 3), squares, batch_size=7)
    operator = cls(o)
    expected = blocks_of(ihvp.GaussNewton(o).to_dense(), operator)
    torch.testing.assert_close(operator.to_dense(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_factors_are_those_of_the_definition(sharing):
    """By explicit sums over examples, places and columns of the root of the outputs' curvature."""
    o = case("shared", batch_size=5)
    net, x = o.params, random(COUNT, 6, 5)
    hidden = torch.tanh(net.lower(x)).detach()
    p = torch.softmax(net(x), -1).detach()
    first, second = torch.zeros(4, 4).double(), torch.zeros(3, 3).double()
    for n in range(COUNT):
        root = torch.linalg.cholesky(torch.diag(p[n]) - torch.outer(p[n], p[n]) + 1e-15 * torch.eye(3))
        for c in root.T / COUNT**0.5:
            g = [c / 6] * 6
            if sharing == "reduce":
                g = [c]
            second += sum(torch.outer(one, one) for one in g)
        a = hidden[n].mean(0, keepdim=True) if sharing == "reduce" else hidden[n]
        first += a.T @ a / len(a) / COUNT
    block = next(block for block in ihvp.KFAC(o, kfac_approx=sharing).blocks if block.name == "upper")
    dense = torch.kron(second, first)
    found = ihvp.KFAC(o, kfac_approx=sharing).to_dense()
    place = block.slices[0]
    torch.testing.assert_close(found[place, place], dense, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_weights_enter_as_in_the_dense_matrices(reduction, kind):
    torch.manual_seed(0)
    x, y, w = random(COUNT, 5), labels(), torch.rand(COUNT, dtype=torch.float64)
    w[3] = 0.0

    def loss(outputs, batch):
        total = (functional.cross_entropy(outputs, batch[1], reduction="none") * batch[2]).sum()
        return total / batch[2].sum() if reduction == "mean" else total

    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    o = ihvp.Objective(
        loss,
        net,
        (x, y, w),
        batch_size=7,
        predict=lambda net, batch: net(batch[0]),
        weights=lambda batch: batch[2],
        reduction=reduction,
    )
    dense = (ihvp.GaussNewton(o) if kind == "exact" else ihvp.OPG(o)).to_dense()
    assert ihvp.EKFAC(o, fisher=kind).trace() == pytest.approx(torch.trace(dense).item(), rel=1e-10)
    whole = o.on([(x, y, w)])
    torch.testing.assert_close(
        ihvp.KFAC(o, fisher=kind).to_dense(), ihvp.KFAC(whole, fisher=kind).to_dense(), rtol=1e-9, atol=1e-13
    )


LOSSES = {
    "entropy": (entropy, labels()),
    "squares": (squares, random(COUNT, 3)),
    "binary": (
        lambda f, b: functional.binary_cross_entropy_with_logits(f, b[1]),
        (random(COUNT, 3) > 0).double(),
    ),
    "smoothed": (lambda f, b: functional.cross_entropy(f, b[1], label_smoothing=0.1), labels()),
    "temperature": (lambda f, b: functional.cross_entropy(f / 2.0, b[1]), labels()),
    "huber": (lambda f, b: functional.huber_loss(f, b[1]), random(COUNT, 3)),
    "mixed": (
        lambda f, b: ((f @ torch.ones(3, 3, dtype=f.dtype) - b[1]) ** 2).mean(),
        random(COUNT, 3),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_any_convex_loss_of_the_outputs_has_a_root(name):
    loss, y = LOSSES[name]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    o = objective(net, random(COUNT, 5), y, loss)
    expected = torch.trace(ihvp.GaussNewton(o).to_dense()).item()
    assert ihvp.EKFAC(o).trace() == pytest.approx(expected, rel=1e-6)
    drawn = ihvp.EKFAC(o, fisher="mc", num_samples=400, seed=3).trace()
    assert drawn == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("name", ["entropy", "squares"])
def test_monte_carlo_fisher_is_gauss_newton_within_its_standard_error(name):
    loss, y = LOSSES[name]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 2), nn.Tanh(), nn.Linear(2, 3))
    o = objective(net, random(COUNT, 5), y, loss)
    draws = torch.stack([ihvp.Fisher(o, num_samples=20, seed=seed).to_dense() for seed in range(200)])
    error = draws.std(0) / len(draws) ** 0.5
    gauss_newton = ihvp.GaussNewton(o).to_dense()
    assert torch.all((draws.mean(0) - gauss_newton).abs() <= 4 * error + 1e-12)
    fisher, v = ihvp.Fisher(o, num_samples=3), random(o.num_params)
    torch.testing.assert_close(fisher @ v, fisher.to_dense() @ v)


def test_functions_of_the_matrix_are_those_of_dense_algebra():
    operator = ihvp.EKFAC(case("normalised"))
    dense, damping = operator.to_dense(), 0.1
    damped = dense + damping * torch.eye(len(dense), dtype=torch.float64)
    v = random(len(dense), 3)
    solution = ihvp.solve(operator, v, damping)
    torch.testing.assert_close(solution.x, torch.linalg.solve(damped, v))
    assert solution.method == "ClosedForm"
    assert operator.logdet(damping) == pytest.approx(torch.logdet(damped).item())
    assert operator.frobenius_norm() == pytest.approx(torch.linalg.norm(dense).item())
    draws = operator.sample(40_000, seed=1, damping=1.0)
    covariance = torch.linalg.inv(dense + torch.eye(len(dense), dtype=torch.float64))
    torch.testing.assert_close(torch.cov(draws), covariance, rtol=0, atol=6 * 40_000**-0.5)
    with pytest.raises(InvalidOption, match="a number above"):
        operator.logdet()


def test_split_damping_damps_the_factors():
    o = case("multilayer")
    operator, damping = ihvp.KFAC(o), 0.3
    split = operator.split(damping)
    block = operator.blocks[0]
    a, b = (factor[0] for factor in block.factors)
    pi = (a.mean() / b.mean()) ** 0.5
    expected = (b[:, None] + damping**0.5 / pi) * (a + pi * damping**0.5)
    torch.testing.assert_close(split.blocks[0].values[0], expected)
    assert ihvp.solve(split, random(o.num_params)).converged
    with pytest.raises(InvalidOption, match="KFAC"):
        ihvp.EKFAC(o).split(damping)


@pytest.mark.parametrize(
    "name", ["multilayer", "widening", "convolution", "attention", "first token", "sorted"]
)
@pytest.mark.parametrize("cls", [ihvp.KFAC, ihvp.EKFAC])
@pytest.mark.parametrize("questions", [2, COUNT])  # fewer than a layer has rows or columns, and more
@pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
def test_scores_by_factors_are_those_of_gradients(name, cls, questions):
    o = case(name)
    operator, test = cls(o), (o.batches.data[0][:questions], labels()[:questions])
    influence = ihvp.Influence(o, 0.1, curvature=operator)
    inverse = torch.linalg.inv(operator.to_dense() + 0.1 * torch.eye(o.num_params, dtype=torch.float64))
    rows, asked = o.per_example_gradients(), o.on(test).per_example_gradients()
    expected = (asked @ inverse @ rows.T / COUNT).numpy()
    np.testing.assert_allclose(
        influence.scores(test), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max()
    )
    own = torch.einsum("ip,pq,iq->i", rows, inverse, rows).numpy() / COUNT
    np.testing.assert_allclose(influence.self_influence(), own, rtol=1e-6)
    parts = influence.scores_by("layer", test)
    np.testing.assert_allclose(
        sum(np.asarray(part) for part in parts.values()), expected, rtol=1e-6, atol=1e-10
    )


@pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
def test_questions_and_examples_of_other_lengths():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    def texts(*lengths):
        return [(torch.randn(3, length, 4).double(), labels(3)) for length in lengths]

    o = ihvp.Objective(
        lambda f, batch: functional.cross_entropy(f.sum(1), batch[1]),
        net,
        texts(1, 6, 1),
        predict=lambda net, batch: net(batch[0]),
    )
    operator, dense = ihvp.EKFAC(o), torch.eye(o.num_params, dtype=torch.float64)
    inverse = torch.linalg.inv(operator.to_dense() + 0.1 * dense)
    influence = ihvp.Influence(o, 0.1, curvature=operator)
    rows = o.per_example_gradients()
    for asked in (texts(1), texts(6), texts(6, 1)):
        expected = o.on(asked).per_example_gradients() @ inverse @ rows.T / len(rows)
        np.testing.assert_allclose(influence.scores(asked), expected, atol=1e-10)


@pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
def test_few_terms_are_as_good_as_the_whole_inverse():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 3))
    x, y = torch.randn(1200, 30), labels(1200)
    o = ihvp.Objective(entropy, net, (x, y), predict=lambda net, batch: net(batch[0]))
    influence = ihvp.Influence(o, 0.05, curvature=ihvp.KFAC(o))
    from ihvp.kronecker.contraction import Contraction

    assert Contraction(influence.inverse.operator, 0.05, 1200 * 100)._kernels[0]._terms is not None
    scores = np.asarray(influence.scores((x[:100], y[:100])))
    x64 = ihvp.Objective(entropy, net.double(), (x.double(), y), predict=lambda net, batch: net(batch[0]))
    inverse = ihvp.inverse(ihvp.KFAC(x64), 0.05)
    asked = x64.on((x[:100].double(), y[:100])).per_example_gradients()
    expected = (x64.per_example_gradients() @ inverse.solve(asked.T).x / 1200).T.numpy()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-3 * np.abs(expected).max())


def test_scores_of_weights_and_of_other_losses():
    torch.manual_seed(0)
    x, y, w = random(COUNT, 5), labels(), torch.rand(COUNT, dtype=torch.float64) + 0.1
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    def loss(outputs, batch):
        each = functional.cross_entropy(outputs, batch[1], reduction="none")
        return (each * batch[2]).sum() / batch[2].sum()

    def margin(outputs, batch):
        return outputs[:, 0].mean()

    o = ihvp.Objective(
        loss,
        net,
        (x, y, w),
        batch_size=7,
        predict=lambda net, batch: net(batch[0]),
        weights=lambda batch: batch[2],
    )
    operator = ihvp.EKFAC(o)
    with pytest.warns(ihvp.influence.NotAtOptimum):
        scores = ihvp.Influence(o, 0.1, curvature=operator).scores((x[:3], y[:3], w[:3]), test_loss=margin)
    inverse = torch.linalg.inv(operator.to_dense() + 0.1 * torch.eye(o.num_params, dtype=torch.float64))
    asked = torch.stack(
        [
            torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(net(one[None])[0, 0], list(net.parameters()))]
            )
            for one in x[:3]
        ]
    )
    expected = asked @ inverse @ o.per_example_gradients().T / COUNT
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
@pytest.mark.parametrize("damping", [0.1, 1e-4])
def test_gauss_newton_in_the_space_of_the_outputs(monkeypatch, damping):
    o = case("multilayer", batch_size=7)
    test = o.batches.data[0][:4], labels()[:4]
    influence = ihvp.Influence(o, damping, "auto", curvature=ihvp.GaussNewton(o))
    dense = ihvp.GaussNewton(o).to_dense() + damping * torch.eye(o.num_params, dtype=torch.float64)
    rows, asked = o.per_example_gradients(), o.on(test).per_example_gradients()
    expected = (asked @ torch.linalg.solve(dense, rows.T) / COUNT).numpy()
    found = influence.scores(test)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert found.residual <= 1e-5
    # With too few rows it goes on by iterations.
    monkeypatch.setattr("ihvp.kronecker.dual._MOST", 10)
    np.testing.assert_allclose(influence.scores(test), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_few_parameters_are_the_smaller_space():
    from ihvp.kronecker.dual import dual_inverse

    net, x = nn.Linear(2, 3).double(), torch.ones(100, 2, dtype=torch.float64)
    y = torch.arange(100) % 3
    o = ihvp.Objective(
        lambda f, b: functional.cross_entropy(f, b[1]), net, (x, y), predict=lambda net, b: net(b[0])
    )
    few = o.on((x[:10], y[:10]))
    assert dual_inverse(ihvp.GaussNewton(few), 0.1, 1e-3) is not None
    assert dual_inverse(ihvp.GaussNewton(o), 0.1, 1e-3) is None


def test_what_is_said_of_residuals_bounds_them():
    from ihvp.kronecker.dual import dual_inverse

    o = case("multilayer")
    operator, damping = ihvp.GaussNewton(o), 0.1
    asked = o.on((o.batches.data[0][:6], labels()[:6]))
    inverse = dual_inverse(operator, damping, rtol=0.5)
    _, corrections = inverse.solved(inverse.rows(asked, asked.batches.data, 0))
    assert inverse._count < 3 * COUNT
    b = asked.per_example_gradients().T
    kept = sum_of_outer(inverse, o.num_params)
    x = (b - kept.T @ torch.as_tensor(corrections)) / damping
    residuals = torch.linalg.norm(b - operator @ x - damping * x, dim=0) / torch.linalg.norm(b, dim=0)
    assert residuals.max() <= inverse.tolerance <= 0.5


def sum_of_outer(inverse, size):
    """The rows that are kept, ``(R, P)``."""
    rows = torch.zeros(inverse._count, size, dtype=torch.float64)
    outer = inverse._rows.outer(slice(0, inverse._count))
    for layer, (g, a) in zip(inverse._rows.layers, outer, strict=True):
        matrices = (g[:, :, None] * a[:, None, :])[:, None]
        for place, part in zip(layer.slices, layer.parts(matrices), strict=True):
            rows[:, place] = part.T
    return rows


def test_preconditioners_by_name_lead_to_the_same_answer():
    o = case("multilayer")
    gauss_newton, v = ihvp.GaussNewton(o), random(o.num_params, 4)
    expected = ihvp.solve(gauss_newton, v, 0.01, solver=ihvp.Direct()).x
    for kind in ("kfac", "ekfac", ihvp.inverse(ihvp.EKFAC(o), 0.01)):
        solution = ihvp.solve(gauss_newton, v, 0.01, solver=ihvp.CG(preconditioner=kind, rtol=1e-9))
        torch.testing.assert_close(solution.x, expected, rtol=1e-5, atol=1e-7)
    # Passes backwards count as products, once for all solves: one for each output of an example, twice.
    inverse = ihvp.inverse(gauss_newton, 0.01, ihvp.CG(preconditioner="ekfac", rtol=1e-9))
    first, second = (inverse.solve(v).matvecs for _ in range(2))
    passes = ihvp.EKFAC(o).passes
    assert first - second == passes > 0
    with pytest.raises(InvalidOption, match="nystrom"):
        ihvp.solve(ihvp.Dense(np.eye(2)), np.ones(2), solver=ihvp.CG(preconditioner="kfac"))


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize("cls", [ihvp.KFAC, ihvp.EKFAC])
def test_factors_are_kept_and_belong_to_their_model(tmp_path, cls, ending):
    o, path = case("attention"), tmp_path / f"factors{ending}"
    operator, v = cls(o), random(o.num_params)
    operator.save(path)
    kept = cls.load(path, o)
    torch.testing.assert_close(kept @ v, operator @ v)
    assert kept.report() == operator.report()
    if cls is ihvp.KFAC:
        torch.testing.assert_close(kept.split(0.1) @ v, operator.split(0.1) @ v)
    with torch.no_grad():
        o.params.out.weight += 1.0
    with pytest.raises(ihvp.errors.StoreMismatch, match="parameters"):
        cls.load(path, o)
    with pytest.raises(ihvp.errors.StoreMismatch, match="operator"):
        (ihvp.KFAC if cls is ihvp.EKFAC else ihvp.EKFAC).load(path, o)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ihvp.errors.DataError, match="checksum"):
        cls.load(path, o)
    with pytest.raises(ihvp.errors.MissingFile):
        cls.load(tmp_path / "none.npz", o)


@pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
def test_streamed_scores_belong_to_their_factors(tmp_path):
    o = case("multilayer")
    test = o.batches.data[0][:3], labels()[:3]
    kept = ihvp.Influence(o, 0.1, curvature=ihvp.EKFAC(o)).scores(test, out=tmp_path / "scores")
    plain = ihvp.Influence(o, 0.1, curvature=ihvp.EKFAC(o)).scores(test)
    np.testing.assert_array_equal(np.asarray(kept), np.asarray(plain))
    for other in (ihvp.KFAC(o), ihvp.EKFAC(o, fisher="empirical")):
        with pytest.raises(ihvp.errors.StoreMismatch, match="curvature"):
            ihvp.Influence(o, 0.1, curvature=other).scores(test, out=tmp_path / "scores")


def test_more_inputs_than_some_frameworks_can_decompose():
    """LAPACK's workspaces, counted in float32, are too short from 2,896 rows on."""
    torch.manual_seed(0)
    net, x, y = nn.Linear(3000, 2, bias=False), torch.randn(6, 3000), torch.randn(6, 2)
    o = ihvp.Objective(squares, net, (x, y), predict=lambda net, batch: net(batch[0]))
    v = torch.randn(6000)
    # The mean squared error of 2 outputs: I ⊗ XᵀX / N.
    a = x.double().T @ x.double() / 6
    expected = torch.linalg.solve(a + 10.0 * torch.eye(3000), v.double().reshape(2, 3000).T).T.reshape(-1)
    found = ihvp.solve(ihvp.KFAC(o), v, 10.0).x
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


class Exotic(nn.Module):
    """Weights that no layer explains: a matrix that is used in two ways, one in an einsum, a scale."""

    def __init__(self):
        super().__init__()
        self.both = nn.Linear(4, 4, bias=False)
        self.bilinear = nn.Parameter(random(3, 4, 4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        h = self.both(x) * self.scale + self.both.weight.sum()
        return torch.einsum("bi,kij,bj->bk", h, self.bilinear, h)


def test_rows_that_all_examples_share_are_no_layer_in_batches_of_one_either():
    whole, single = case("attention"), case("attention", batch_size=1)
    for o in (whole, single):
        assert "positions.weight: 20 parameters, exact block" in ihvp.EKFAC(o).report()
    assert ihvp.EKFAC(single).trace() == pytest.approx(ihvp.EKFAC(whole).trace(), rel=1e-10)
    assert ihvp.KFAC(single).trace() == pytest.approx(ihvp.KFAC(whole).trace(), rel=1e-10)


def test_outputs_need_the_examples_along_the_first_axis():
    o = ihvp.Objective(
        lambda f, b: functional.cross_entropy(f, b[1].reshape(-1)),
        nn.Linear(4, 3).double(),
        (random(COUNT, 5, 4), torch.zeros(COUNT, 5, dtype=torch.long)),
        predict=lambda net, b: net(b[0]).flatten(0, 1),
    )
    with pytest.raises(
        InvalidOption, match=r"16 examples along the first axis of each array; found shape \(80"
    ):
        ihvp.KFAC(o)
    with_value = ihvp.Objective(
        lambda f, b: entropy(f["logits"], b),
        nn.Linear(4, 3).double(),
        (random(COUNT, 4), labels()),
        predict=lambda net, b: {"logits": net(b[0]), "mean": net(b[0]).mean()},
    )
    with pytest.raises(InvalidOption, match=r"found shape \(\)"):
        ihvp.KFAC(with_value)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.extra, self.out = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.extra(x)) if x.mean() < 5 else x)


@pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
def test_a_layer_that_a_batch_does_not_use_is_named():
    o = objective(Branching(), random(COUNT, 5), labels())
    influence = ihvp.Influence(o, 0.1, curvature=ihvp.KFAC(o))
    with pytest.raises(InvalidOption, match="one did not use extra"):
        influence.scores((random(3, 5) + 10, labels(3)))


def test_rows_whose_terms_cancel_in_float32_hide_no_layer():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    many = 1200  # more than the factors that one pass can tell apart
    data = torch.rand(many, 1, 8, 8), labels(many)
    o = ihvp.Objective(entropy, net, data, predict=lambda net, batch: net(batch[0]))
    assert [block.name for block in ihvp.KFAC(o, fisher="empirical").blocks] == ["0", "3", "7"]


def test_half_precision():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).bfloat16()
    x, y = random(COUNT, 5).bfloat16(), labels()
    o = ihvp.Objective(entropy, net, (x, y), predict=lambda net, batch: net(batch[0]), batch_size=7)
    exact = case("multilayer")
    for kind in ("exact", "mc", "empirical"):
        assert ihvp.KFAC(o, fisher=kind).trace() == pytest.approx(
            ihvp.KFAC(exact, fisher=kind).trace(), rel=0.5
        )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_outputs_in_half_precision_have_the_curvature_of_their_loss(count):
    for seed in range(6):
        torch.manual_seed(seed)
        half = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).bfloat16()
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        net.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
        x, y = torch.randn(count, 4).bfloat16(), torch.randint(0, 3, (count,))

        def matrix(net, x, y=y):
            return ihvp.KFAC(
                ihvp.Objective(
                    lambda outputs, batch: functional.cross_entropy(outputs, batch[1]),
                    net,
                    (x, y),
                    predict=lambda net, batch: net(batch[0]),
                )
            ).to_dense()

        exact = matrix(net, x.float())
        assert float((matrix(half, x) - exact).norm()) <= 0.05 * float(exact.norm())


def test_no_parameter_is_dropped():
    o = objective(Exotic(), random(COUNT, 4), labels())
    operator = ihvp.EKFAC(o)
    report = operator.report()
    assert "both.weight: 16 parameters, exact block" in report
    assert "both: not taken for a layer, because its weights reach the outputs on another way, too" in report
    assert "scale: 4 parameters, exact block" in report
    gauss_newton = ihvp.GaussNewton(o).to_dense()
    torch.testing.assert_close(operator.to_dense(), blocks_of(gauss_newton, operator), rtol=1e-8, atol=1e-10)


def test_large_parameters_without_a_layer_have_their_diagonal(monkeypatch):
    monkeypatch.setattr("ihvp.kronecker.coverage.EXACT", 3)
    monkeypatch.setattr("ihvp.kronecker.estimate.EXACT", 3)
    o = objective(Exotic(), random(COUNT, 4), labels())
    operator = ihvp.KFAC(o)
    assert "diagonal, without a layer" in operator.report()
    torch.testing.assert_close(operator.to_dense(), torch.diag(torch.diag(ihvp.GaussNewton(o).to_dense())))


def test_only_some_parameters():
    o, whole = case("multilayer", only="2"), case("multilayer")
    assert o.blocks == {"2.weight": slice(0, 12), "2.bias": slice(12, 15)}
    for kind in (ihvp.Hessian, ihvp.GaussNewton, ihvp.OPG):
        torch.testing.assert_close(kind(o).to_dense(), kind(whole).to_dense()[24:, 24:])
    torch.testing.assert_close(ihvp.KFAC(o).to_dense(), ihvp.KFAC(whole).to_dense()[24:, 24:])
    torch.testing.assert_close(o.gradient(), whole.gradient()[24:])
    alone = case("multilayer", only="0.weight")
    assert "0: 20 parameters, factors 4 × 5" in ihvp.KFAC(alone).report()
    with pytest.raises(InvalidOption, match="only is 3"):
        case("multilayer", only=3)
    by_function = case("multilayer", only=lambda name: name.endswith("bias"))
    assert list(by_function.blocks) == ["0.bias", "2.bias"]
    with pytest.raises(InvalidOption, match=r"expected names among 0\.weight"):
        case("multilayer", only="head")
    with pytest.raises(InvalidOption, match="at least one of"):
        case("multilayer", only=lambda name: False)


@pytest.mark.parametrize("by", ["layer", "parameter"])
@pytest.mark.parametrize("dense", [2048, 5])
def test_block_diagonal_of_any_curvature(monkeypatch, by, dense):
    monkeypatch.setattr("ihvp.blockwise._DENSE", dense)
    o = case("multilayer")
    operator = ihvp.BlockDiagonal(ihvp.GaussNewton(o), by=by)
    whole = ihvp.GaussNewton(o).to_dense()
    expected = torch.zeros_like(whole)
    for places in operator.blocks.values():
        numbers = torch.cat([torch.arange(place.start, place.stop) for place in places])
        expected[numbers[:, None], numbers] = whole[numbers[:, None], numbers]
    torch.testing.assert_close(operator.to_dense(), expected)
    v = random(o.num_params)
    x = ihvp.solve(operator, v, 0.1).x
    torch.testing.assert_close(
        x, torch.linalg.solve(expected + 0.1 * torch.eye(len(v)), v), rtol=1e-6, atol=1e-8
    )
    with pytest.raises(InvalidOption, match="each entry once"):
        ihvp.BlockDiagonal(ihvp.GaussNewton(o), by={"a": slice(0, 3)})


def test_bad_input_is_named():
    net = nn.Linear(5, 3).double()
    o = ihvp.Objective(lambda net, b: entropy(net(b[0]), b), net, (random(COUNT, 5), labels()))
    with pytest.raises(InvalidOption, match="predict"):
        ihvp.KFAC(o)
    concave = objective(nn.Linear(5, 3), random(COUNT, 5), random(COUNT, 3), lambda f, b: -squares(f, b))
    with pytest.raises(InvalidOption, match="empirical"):
        ihvp.KFAC(concave)
    assert ihvp.KFAC(concave, fisher="empirical").trace() > 0
    for options in ({"fisher": "type-2"}, {"kfac_approx": "sum"}, {"num_samples": 0}, {"seed": -1}):
        with pytest.raises(InvalidOption, match=next(iter(options))):
            ihvp.KFAC(case("multilayer"), **options)
    with pytest.raises(ihvp.errors.SolverError):
        ihvp.solve(ihvp.KFAC(case("multilayer")), random(39))


@pytest.mark.parametrize("count", [2, COUNT])
def test_examples_that_depend_on_each_other_are_named(count):
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    for checks in (True, False):
        with pytest.raises(ihvp.errors.LossNotAdditive, match=r"model\.eval\(\)"):
            ihvp.EKFAC(objective(net, random(count, 5), labels(count), checks=checks))
    assert "exact block" in ihvp.EKFAC(objective(net.eval(), random(count, 5), labels(count))).report()


def test_mixed_precision_has_exact_blocks_and_says_why():
    def predict(net, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net(batch[0]).float()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    o = ihvp.Objective(entropy, net, (random(9, 5).float(), labels(9)), predict=predict)
    report = ihvp.EKFAC(o).report()
    assert "2: not taken for a layer, because" in report
    assert "less precision" in report


def test_an_embedding_that_changes_its_weights_is_refused():
    net = nn.Sequential(nn.Embedding(7, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 3)).double()
    before = net[0].weight.detach().clone()
    tokens = torch.randint(0, 7, (COUNT, 3))
    with pytest.raises(ihvp.errors.ParameterError, match="max_norm"):
        objective(net, tokens, labels())
    assert torch.equal(net[0].weight, before)
    net[0].max_norm = None
    assert "factors 4 × 7" in ihvp.KFAC(objective(net, tokens, labels())).report()


def test_a_matrix_product_in_batches_keeps_its_weight():
    class Einsum(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = nn.Parameter(random(5, 4)), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(torch.tanh(torch.einsum("btc,ch->bth", x, self.inner)).mean(1))

    o = objective(Einsum(), random(COUNT, 6, 5), labels())
    operator = ihvp.EKFAC(o)
    assert "inner: 20 parameters" in operator.report()
    assert operator.trace() == pytest.approx(torch.trace(ihvp.GaussNewton(o).to_dense()).item(), rel=1e-10)


def test_parameters_and_gradients_stay_as_they_are():
    o = case("attention")
    net = o.params
    before = {name: (id(p), p.detach().clone()) for name, p in net.named_parameters()}
    ihvp.EKFAC(o)
    for name, p in net.named_parameters():
        assert id(p) == before[name][0]
        assert torch.equal(p, before[name][1])
        assert p.grad is None
        assert p.requires_grad
