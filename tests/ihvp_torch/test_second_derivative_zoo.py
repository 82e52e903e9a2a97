"""Random torch networks: a right second derivative is never called wrong, and a wrong one is.

``IHVP_ZOO=100`` in the environment tries so many networks in the place of a few.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as torch calls it

from ihvp.space import VectorSpace
from ihvp.verification.second_derivative import Comparison, compare_with_gradients
from ihvp_torch._backend import TorchBackend

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def compare(loss: Callable[..., Any], params: Any, batch: Any) -> Comparison:
    backend = TorchBackend(params)
    return compare_with_gradients(
        backend, loss, params, batch, VectorSpace.of(backend.flatten(params), backend, params)
    )


class Pooled(nn.Module):
    def __init__(self, pick: np.random.Generator) -> None:
        super().__init__()
        channels = int(pick.integers(2, 7))
        pool = nn.MaxPool2d(2) if pick.random() < 0.7 else nn.AvgPool2d(2)
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(channels, 4, 3), nn.ReLU()
        )
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x.reshape(-1, 1, 8, 8)).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, pick: np.random.Generator) -> None:
        super().__init__()
        kind = nn.LSTM if pick.random() < 0.7 else nn.GRU
        self.cell = kind(8, int(pick.integers(3, 12)), batch_first=True)
        self.out = nn.Linear(self.cell.hidden_size, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x.reshape(-1, 8, 8))[0][:, -1])


class Attention(nn.Module):
    def __init__(self, pick: np.random.Generator) -> None:
        super().__init__()
        activation = "relu" if pick.random() < 0.5 else "gelu"
        self.block = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, activation=activation, batch_first=True
        )
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(x.reshape(-1, 8, 8)).mean(1))


class Words(nn.Module):
    def __init__(self, pick: np.random.Generator) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, int(pick.integers(3, 9)), padding_idx=0)
        self.layers = nn.Sequential(
            nn.LayerNorm(self.embedding.embedding_dim), nn.Linear(self.embedding.embedding_dim, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        words = (x.abs() * 5).long().clamp(0, 10)
        return self.layers(self.embedding(words).mean(1))


def dense(pick: np.random.Generator) -> nn.Module:
    activations = [
        nn.ReLU,
        nn.LeakyReLU,
        nn.GELU,
        nn.Tanh,
        nn.SiLU,
        nn.ELU,
        nn.Hardtanh,
        lambda: nn.Softplus(beta=50),
    ]
    activation = activations[pick.integers(len(activations))]
    norms = [nn.Identity, nn.LayerNorm, nn.BatchNorm1d, lambda width: nn.GroupNorm(2, width)]
    norm = norms[pick.integers(len(norms))]
    widths = [64, *(2 * int(width) for width in pick.integers(2, 40, size=pick.integers(1, 4)))]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bool(pick.random() < 0.8)), norm(after), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 5))


def hinge(outputs: Tensor, y: Tensor) -> Tensor:
    margins = 1 - outputs.gather(1, y[:, None]) + outputs
    return margins.clamp(min=0).mean()


def absolute(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - F.one_hot(y, 5)).abs().mean()


def squared(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - F.one_hot(y, 5)).square().mean()


def network(seed: int) -> tuple[str, str, Callable[..., Tensor], nn.Module, tuple[Tensor, Tensor]]:
    """A dtype, a description, and a loss with its module and batch."""
    pick = np.random.default_rng(seed)
    kinds = [dense, dense, dense, Pooled, Recurrent, Attention, Words]
    kind = kinds[seed % len(kinds)]
    name = ["float64", "float32", "float64", "float32", "bfloat16"][pick.integers(5)]
    dtype = DTYPES[name]
    error = [F.cross_entropy, F.cross_entropy, squared, hinge, absolute][pick.integers(5)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = kind(pick).to(dtype)
        rows = int(pick.choice([1, 3, 17, 64, 200]))
        x, y = torch.randn(rows, 64, dtype=dtype), torch.randint(0, 5, (rows,))
        if pick.random() < 0.2:
            x[0] = 0
        if pick.random() < 0.3:
            with torch.no_grad():
                for name_, parameter in module.named_parameters():
                    if "bias" in name_:
                        parameter.zero_()
    training = bool(pick.random() < 0.3) and rows > 1
    module.train(training)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return error(model(batch[0]), batch[1])

    steps = int(pick.choice([0, 0, 10, 200]))
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(module, (x, y)).backward()
        optimiser.step()
    optimiser.zero_grad()
    what = f"{kind.__name__} {error.__name__} rows={rows} steps={steps} training={training}"
    return name, what, loss, module, (x, y)


@pytest.mark.parametrize("seed", range(int(os.environ.get("IHVP_ZOO", "8"))))
def test_a_right_second_derivative_is_never_called_wrong(seed):
    _, what, loss, module, batch = network(seed)
    comparison = compare(loss, module, batch)
    assert comparison.outcome != "wrong", (what, comparison)


def survey(count: int) -> Counter[tuple[str, str]]:
    """How many networks of each dtype came to each outcome."""
    found: Counter[tuple[str, str]] = Counter()
    for seed in range(count):
        dtype, what, loss, module, batch = network(seed)
        comparison = compare(loss, module, batch)
        found[dtype, comparison.outcome] += 1
        if comparison.outcome != "passed" and dtype != "bfloat16":
            print(seed, dtype, what, comparison)
    return found


class Constant(torch.autograd.Function):
    """The identity, whose second derivative is multiplied by a factor: 0 takes the slope for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope * ctx.factor + slope.detach() * (1 - ctx.factor), None


class Elementwise(torch.autograd.Function):
    """A function whose backward pass takes the slope that forward computed for a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            copy = x.detach().requires_grad_()
            value = function(copy)
            (ctx.slope,) = torch.autograd.grad(value.sum(), copy)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope * ctx.slope, None


class CrossEntropy(torch.autograd.Function):
    """The mean cross-entropy with the probabilities of the forward pass in its gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, y: Tensor) -> Tensor:
        ctx.difference = (logits.softmax(1) - F.one_hot(y, logits.shape[1])) / len(y)
        return F.cross_entropy(logits, y)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope * ctx.difference, None


class Normalise(torch.autograd.Function):
    """Layer normalisation with the statistics of the forward pass in its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.scale = 1 / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        ctx.save_for_backward(x)
        return (x - x.mean(1, keepdim=True)) * ctx.scale

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        y = (x - x.mean(1, keepdim=True)) * ctx.scale
        return ctx.scale * (slope - slope.mean(1, keepdim=True) - y * (slope * y).mean(1, keepdim=True))


class Attended(torch.autograd.Function):
    """``softmax(s) x``, whose gradient by s takes the probabilities for numbers."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, x: Tensor) -> Tensor:
        p = s.softmax(-1)
        ctx.save_for_backward(p, x)
        return p @ x

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        p, x = (saved.detach() for saved in ctx.saved_tensors)
        by_p = slope @ x.mT
        return p * (by_p - (p * by_p).sum(-1, keepdim=True)), p.mT @ slope


def layers(*widths: int) -> dict[str, Tensor]:
    random = np.random.default_rng(7)
    weights: dict[str, Tensor] = {}
    for i, (before, after) in enumerate(pairwise(widths)):
        weights[f"W{i}"] = torch.tensor(random.standard_normal((before, after)) / before**0.5)
        weights[f"b{i}"] = torch.tensor(0.1 * random.standard_normal(after))
    return weights


def forward(
    w: dict[str, Tensor],
    x: Tensor,
    activation: Callable[[Tensor, int], Tensor] = lambda z, i: torch.tanh(z),
    of: Callable[[Tensor, str], Tensor] = lambda parameter, name: parameter,
) -> Tensor:
    last = len(w) // 2 - 1
    for i in range(last + 1):
        z = x @ of(w[f"W{i}"], f"W{i}") + of(w[f"b{i}"], f"b{i}")
        x = z if i == last else activation(z, i)
    return x


def in_layer(number: int, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda z, i: Elementwise.apply(z, function) if i == number else function(z)


def of_parameter(which: str, factor: float) -> Callable[[Tensor, str], Tensor]:
    return lambda parameter, name: Constant.apply(parameter, factor) if name == which else parameter


def attention(w: dict[str, Tensor], x: Tensor) -> Tensor:
    h = x.reshape(-1, 2, 4) @ w["W0"][:4]
    return Attended.apply((h @ w["W1"]) @ h.mT, h).mean(1) @ w["W2"]


DEEP, WIDE = (8, 7, 7, 7, 7, 7, 5), (8, 12, 12, 5)
WRONG: dict[str, tuple[tuple[int, ...], Callable[[dict[str, Tensor], tuple[Tensor, Tensor]], Tensor]]] = {
    "an activation that saved its slope": (
        WIDE,
        lambda w, b: F.cross_entropy(forward(w, b[0], in_layer(1, F.softplus)), b[1]),
    ),
    "one activation of six layers": (
        DEEP,
        lambda w, b: squared(forward(w, b[0], in_layer(3, torch.tanh)), b[1]),
    ),
    "an activation of the first layer": (
        DEEP,
        lambda w, b: F.cross_entropy(forward(w, b[0], in_layer(0, F.silu)), b[1]),
    ),
    "a cross-entropy that saved its probabilities": (
        WIDE,
        lambda w, b: CrossEntropy.apply(forward(w, b[0]), b[1]),
    ),
    "a normalisation that saved its scale": (
        WIDE,
        lambda w, b: F.cross_entropy(forward(w, b[0], lambda z, i: torch.tanh(Normalise.apply(z))), b[1]),
    ),
    "one normalisation of three": (
        (8, 12, 12, 12, 5),
        lambda w, b: squared(
            forward(
                w,
                b[0],
                lambda z, i: torch.tanh(Normalise.apply(z) if i == 1 else F.layer_norm(z, z.shape[1:])),
            ),
            b[1],
        ),
    ),
    "attention that saved its probabilities": (
        (4, 4, 4, 5),
        lambda w, b: F.cross_entropy(attention({**w, "W0": w["W0"][:4]}, b[0]), b[1]),
    ),
    "a weight whose column is lost": (
        WIDE,
        lambda w, b: F.cross_entropy(forward(w, b[0], of=of_parameter("W1", 0.0)), b[1]),
    ),
    "a weight times 0.9": (
        WIDE,
        lambda w, b: F.cross_entropy(forward(w, b[0], of=of_parameter("W0", 0.9)), b[1]),
    ),
    "a weight of the wrong sign": (
        WIDE,
        lambda w, b: squared(forward(w, b[0], of=of_parameter("W2", -1.0)), b[1]),
    ),
    "a bias of five": (
        WIDE,
        lambda w, b: F.cross_entropy(forward(w, b[0], of=of_parameter("b2", 0.5)), b[1]),
    ),
    "a penalty without curvature": (
        WIDE,
        lambda w, b: (
            squared(forward(w, b[0]), b[1]) + Elementwise.apply(w["W0"], lambda z: 0.1 * z * z).sum()
        ),
    ),
    "a ReLU network with one lost curvature": (
        DEEP,
        lambda w, b: F.cross_entropy(
            forward(w, b[0], lambda z, i: F.gelu(z) if i != 2 else Elementwise.apply(z, F.gelu)).relu(), b[1]
        ),
    ),
}


def product_error(loss: Callable[..., Any], w: dict[str, Tensor], batch: Any) -> float:
    """The error of a product in a random direction, by central differences."""
    backend = TorchBackend(w)
    x = backend.flatten(w)
    v = torch.tensor(np.random.default_rng(3).standard_normal(len(x)))

    def gradient(step: float) -> Tensor:
        return backend.grad(loss, backend.unflatten(x + step * v, w), batch)

    difference = (gradient(1e-6) - gradient(-1e-6)) / 2e-6
    product = backend.hvp(loss, w, batch, v)
    return float((product - difference).norm() / max(product.norm(), difference.norm()))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_second_derivative_is_found(what, dtype):
    widths, loss = WRONG[what]
    random = np.random.default_rng(8)
    x, y = torch.tensor(random.standard_normal((50, 8))), torch.tensor(random.integers(0, 5, 50))
    w = layers(*widths)
    error = product_error(loss, w, (x, y))
    assert error > 0.01
    if dtype == "float32":
        w, x = {name: value.float() for name, value in w.items()}, x.float()
    comparison = compare(loss, w, (x, y))
    if dtype == "float64" or error > 0.15:
        assert comparison.outcome == "wrong", (error, comparison)
    print(dtype, what, round(error, 4), comparison)
