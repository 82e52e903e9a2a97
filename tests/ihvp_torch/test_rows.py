from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ihvp_torch import _rows
from ihvp_torch._rows import rows_at_once, together, widest

CPU = torch.device("cpu")


def columns(count, size):
    return torch.randn(size, count, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Counted(torch.autograd.Function):
    """x² that counts its backward passes, as torch runs them for one vector or for many."""

    passes = 0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return Slope.apply(x, g)


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, g):
        ctx.save_for_backward(x, g)
        return 2 * x * g

    @staticmethod
    def backward(ctx, g):
        x, first = ctx.saved_tensors
        Counted.passes += 1
        return 2 * first * g, 2 * x * g


class OfOneVector(Slope):
    """As :class:`Slope`, with a backward pass that asks for a value."""

    @staticmethod
    def backward(ctx, g):
        assert g.sum().item() is not None
        return Slope.backward(ctx, g)


class OutsideTorch(Slope):
    """As :class:`Slope`, with a backward pass in numpy, a constant to whatever records operations."""

    @staticmethod
    def backward(ctx, g):
        x, first = ctx.saved_tensors
        Counted.passes += 1
        return torch.from_numpy(2 * g.numpy() * first.detach().numpy()), 2 * x * g


def square_with(slope):
    class Stubborn(Counted):
        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return slope.apply(x, g)

    return Stubborn.apply


def passes(call):
    Counted.passes = 0
    call()
    return Counted.passes


@pytest.mark.parametrize(
    ("size", "first", "later"), [(4, 1, 0), (600_000, 5, 5)], ids=["recorded", "one by one"]
)
def test_small_graph_is_recorded_and_checked_with_the_first_block(backend, size, first, later):
    w = torch.linspace(1, 2, size, dtype=torch.float64)
    block = columns(5, size)
    product = backend.linearize(lambda p, _: Counted.apply(p[0] ** 2).sum(), [w], None)
    assert [passes(lambda: product(block)), passes(lambda: product(block))] == [first, later]
    torch.testing.assert_close(product(block), 12 * w[:, None] ** 2 * block)


def test_tiles_of_a_block_are_bounded_and_even():
    tiles = []
    product = together(None, lambda rows: tiles.append(len(rows)) or rows, lambda: rows_at_once(60_000, CPU))
    product(columns(1, 12)[:, 0].expand(4, 12).T, False)
    product(columns(4, 3), False)
    assert tiles == [6, 6, 3]


def test_values_between_parameters_and_loss_count_and_the_batch_does_not():
    w, x = torch.ones(10), torch.ones(500, 20)
    assert widest([w], [torch.ones(7, 5), x], {"x": x, "name": "train"}) == 35
    assert widest([w], [x.T], x) == 10


@pytest.mark.parametrize("slope", [OfOneVector, OutsideTorch])
def test_what_a_recording_does_not_tell_is_done_row_by_row(backend, slope):
    w, square = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), square_with(slope)
    loss = lambda p, _: square(p[0] ** 2).sum()  # noqa: E731
    block = columns(5, 3)
    expected = 12 * w[:, None] ** 2 * block
    product = backend.linearize(loss, [w], None)
    torch.testing.assert_close(product(block), expected)
    assert passes(lambda: product(block)) == 5
    torch.testing.assert_close(product(block), expected)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.attend, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, tokens):
        x = self.norm(self.embed(tokens))
        x = x + self.attend(x, x, x, need_weights=False)[0]
        return self.out(nn.functional.gelu(x)).mean(dim=1)


NETWORKS = {
    "dense": lambda: nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3)
    ),
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2, padding=1), nn.BatchNorm2d(2), nn.SiLU(),
        nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(8, 3),
    ),
    "strides and dilations": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2, padding=2, dilation=2), nn.Tanh(),
        nn.Conv1d(3, 2, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3),
    ),
    "groups and transposed": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.ConvTranspose2d(1, 4, 2), nn.Tanh(),
        nn.Conv2d(4, 2, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3),
    ),
    "attention": Attention,
    "mixture": lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.Softmax(1), nn.Softplus()),
}  # fmt: skip


def of_vectors_alone(single):
    return lambda v, last: single(v, last) if v.ndim == 1 else pytest.fail("row by row")


@pytest.mark.parametrize("name", NETWORKS)
def test_recorded_block_has_the_products_of_its_columns(backend, name, monkeypatch):
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    x = torch.randint(5, (6, 3)) if name == "attention" else torch.randn(6, 4, dtype=torch.float64)
    loss = lambda model, data: nn.functional.cross_entropy(model(data[0]), data[1])  # noqa: E731
    block, batch = columns(4, backend.flatten(model).numel()), (x, torch.arange(6) % 3)
    expected = torch.stack([backend.hvp(loss, model, batch, v) for v in block.T], dim=1)
    monkeypatch.setattr(_rows, "row_by_row", of_vectors_alone)
    product = backend.linearize(loss, model, batch)
    torch.testing.assert_close(product(block), expected)
    torch.testing.assert_close(product(2 * block), 2 * expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_recorded_block_of_a_gauss_newton_matrix_has_the_products_of_its_columns(backend, name, monkeypatch):
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    x = torch.randint(5, (6, 3)) if name == "attention" else torch.randn(6, 4, dtype=torch.float64)
    functions = lambda model, data: model(data[0]), lambda f, data: nn.functional.cross_entropy(f, data[1])
    block, given = columns(4, backend.flatten(model).numel()), (*functions, model, (x, torch.arange(6) % 3))
    expected = torch.stack([backend.gnvp(*given, v) for v in block.T], dim=1)
    monkeypatch.setattr(_rows, "row_by_row", of_vectors_alone)
    product = backend.linearize_gauss_newton(*given)
    torch.testing.assert_close(product(block), expected)
    torch.testing.assert_close(product(2 * block), 2 * expected)
    assert product.nbytes > 0
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    torch.testing.assert_close(product(block[:, 0]), backend.gnvp(*given, block[:, 0]))


def test_block_of_no_columns_is_empty(backend, net, square_loss, batch):
    empty = torch.zeros(26, 0, dtype=torch.float64)
    assert backend.hvp(square_loss, net, batch, empty).shape == (26, 0)


def test_unused_and_linear_parameters_have_rows_of_zeros(backend):
    params = {"unused": torch.ones(2), "linear": torch.tensor(3.0), "cubic": torch.tensor([5.0])}
    loss = lambda p, _: (p["linear"] + p["cubic"] ** 3).sum()  # noqa: E731
    product = backend.hvp(loss, params, None, torch.eye(4))
    assert product.equal(torch.diag(torch.tensor([0.0, 0.0, 0.0, 30.0])))


def test_mixed_dtypes_are_promoted_in_a_block(backend):
    params = {"a": torch.tensor([0.5], dtype=torch.float32), "b": torch.tensor([0.25], dtype=torch.float64)}
    loss = lambda p, _: (p["a"].double() * p["b"]).sum() ** 2  # noqa: E731
    block = backend.hvp(loss, params, None, columns(4, 2))
    expected = torch.tensor([[0.125, 0.5], [0.5, 0.5]], dtype=torch.float64) @ columns(4, 2)
    assert block.dtype == torch.float64
    torch.testing.assert_close(block, expected, rtol=1e-6, atol=1e-6)


def test_checkpointed_module_has_the_same_block(backend, net, square_loss, batch):
    def loss(model, data):
        return (checkpoint(model, data[0], use_reentrant=False) - data[1]).square().mean()

    block = columns(5, 26)
    expected = backend.hvp(square_loss, net, batch, block)
    for params in (net, backend.unflatten(backend.flatten(net), net)):
        torch.testing.assert_close(backend.hvp(loss, params, batch, block), expected)


def test_sparse_gradients_have_a_block(backend):
    embedding = nn.Embedding(3, 2, sparse=True, dtype=torch.float64)
    index = torch.tensor([1, 1])
    product = backend.hvp(lambda m, i: m(i).pow(3).sum(), embedding, index, columns(4, 6))
    used = torch.tensor([0.0, 0.0, 2.0, 2.0, 0.0, 0.0], dtype=torch.float64)[:, None]
    expected = used * 6 * embedding.weight.detach().reshape(-1, 1) * columns(4, 6)
    torch.testing.assert_close(product, expected)
