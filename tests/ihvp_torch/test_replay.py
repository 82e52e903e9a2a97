"""Products at many batches, of which one is recorded and the others are played."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import ihvp
from ihvp_torch._backend import TorchBackend
from ihvp_torch._replay import Replayed

ROWS, CLASSES = 12, 3


def network(*middle, width=5, hidden=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, hidden), *middle, nn.Linear(hidden, CLASSES)).double().eval()


def convolutions():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), *layers, nn.Linear(8, CLASSES)).double().eval()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mix = nn.Embedding(9, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        h = self.words(x)
        return self.head((h + self.mix(h, h, h, need_weights=False)[0]).mean(1))


NETWORKS = {
    "perceptron": (lambda: network(nn.Tanh()), 5),
    "deep": (lambda: network(nn.GELU(), nn.Linear(6, 6), nn.Softplus(), nn.LayerNorm(6)), 5),
    "batch norm": (lambda: network(nn.BatchNorm1d(6), nn.SiLU(inplace=True)), 5),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(network(nn.Sigmoid())[0]).double(),
        5,
    ),
    "convolutions": (convolutions, 16),
    "attention": (lambda: Attention().double(), 4),
}


def batches(width, count, seed=0, integers=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(ROWS, width, generator=generator, dtype=dtype)
        if integers:
            x = torch.randint(0, 9, (ROWS, width), generator=generator)
        yield x, torch.randint(0, CLASSES, (ROWS,), generator=generator)


def loss(net, batch):
    return cross_entropy(net(batch[0]), batch[1])


class Counted:
    """A loss that counts its calls."""

    def __init__(self, inner=loss):
        self.inner, self.calls = inner, 0

    def __call__(self, net, batch):
        self.calls += 1
        return self.inner(net, batch)


def check(loss, net, given, dtype=torch.float64, rtol=1e-12, predict=None):
    """All products are right; returns how often the loss was called in the last half."""
    counted = Counted(loss)
    products, reference = TorchBackend(net).batch_products(counted, net, predict), TorchBackend(net)
    size = reference.flatten(net).numel()
    before = [p.detach().clone() for p in net.parameters()]
    held = list(net.parameters())
    given, called = list(given), 0
    for number, batch in enumerate(given):
        v = torch.randn(size, 5, generator=torch.Generator().manual_seed(number), dtype=dtype)
        for vector in (v[:, 0], v):
            called = counted.calls if number == len(given) // 2 else called
            found = products(batch, vector)
            expected = (
                reference.hvp(loss, net, batch, vector)
                if predict is None
                else reference.gnvp(predict, loss, net, batch, vector)
            )
            assert found.dtype == expected.dtype
            assert float((found - expected).norm()) <= rtol * float(expected.norm())
    assert all(a is b for a, b in zip(held, net.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    return counted.calls - called


@pytest.mark.parametrize("name", NETWORKS)
def test_products_are_those_of_each_batch_without_another_call_of_the_loss(name):
    make, width = NETWORKS[name]
    given = batches(width, 24, integers=name == "attention")
    assert check(loss, make(), given) == 0


def test_single_precision():
    net = network(nn.Tanh()).float()
    assert check(loss, net, batches(5, 24, dtype=torch.float32), torch.float32, 1e-5) == 0


def test_gauss_newton_products():
    def predict(net, batch):
        return net(batch[0])

    def output_loss(outputs, batch):
        return cross_entropy(outputs, batch[1])

    assert check(output_loss, network(nn.Tanh()), batches(5, 24), predict=predict) == 0


def test_dictionaries_of_parameters_and_of_data():
    params = {"w": torch.randn(3, 2, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    products = TorchBackend(params).batch_products(of_mapping, params)
    for number in range(20):
        generator = torch.Generator().manual_seed(number)
        batch = {"x": torch.randn(7, 3, generator=generator, dtype=torch.float64).numpy(), "scale": 2.0}
        v = torch.randn(8, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(
            products(batch, v), TorchBackend(params).hvp(of_mapping, params, batch, v), rtol=1e-12, atol=0
        )


def of_mapping(params, batch):
    return batch["scale"] * torch.exp(torch.tanh(batch["x"] @ params["w"]) + params["b"]).mean()


def by_value(net, batch):
    return loss(net, batch) * (2.0 if float(batch[0].sum()) > 0 else 1.0)


def by_numpy(net, batch):
    return loss(net, batch) * float(batch[0].detach().numpy().sum())


def by_list(net, batch):
    return loss(net, batch) * (1 + sum(batch[1].tolist()))


def by_array(net, batch):
    return loss(net, batch) * torch.from_numpy(np.bincount(np.asarray(batch[1]), minlength=3)).sum(0).item()


def by_subset(net, batch):
    return loss(net, (batch[0][batch[1] > 0], batch[1][batch[1] > 0]))


@pytest.mark.parametrize("function", [by_value, by_numpy, by_list, by_array, by_subset])
def test_a_loss_that_looks_at_values_is_called_each_time(function):
    assert check(function, network(nn.Tanh()), batches(5, 24)) > 0


def alike_at_first(count):
    """Batches of which the first half have labels of one kind alone, as if the others were rare."""
    for number, (x, y) in enumerate(batches(5, count)):
        yield x, torch.ones_like(y) if number < count // 2 else y


def scores(net, batch):
    return torch.tanh(net(batch[0])) ** 2


def by_mask(net, batch):
    return loss(net, (batch[0][batch[1] == 1], batch[1][batch[1] == 1]))


def by_masked_mean(net, batch):
    return scores(net, batch).masked_select((batch[1] == 1)[:, None]).mean()


def by_places(net, batch):
    return scores(net, batch)[torch.nonzero(batch[1] == 1)[:, 0]].mean()


def by_places_of_where(net, batch):
    return scores(net, batch)[torch.where(batch[1] == 1)].mean()


def by_labels_that_occur(net, batch):
    return sum(k * scores(net, batch)[:, k].mean() for k in torch.unique(batch[1]))


def by_repetition(net, batch):
    return scores(net, batch).repeat_interleave(batch[1], dim=0).mean()


def by_a_tensor_of_tensors(net, batch):
    return (scores(net, batch).sum(1) * torch.tensor(list(batch[1]))).mean()


def by_a_new_tensor(net, batch):
    return (scores(net, batch).sum(1) * batch[0].new_tensor([1 + label for label in batch[1]])).mean()


def by_splitting(net, batch):
    return torch.tensor_split(scores(net, batch), 1 + batch[1][:1])[0].mean()


def by_memory(net, batch):
    return scores(net, batch).mean() * (1 + sum(bytes(batch[1].untyped_storage())))


@pytest.mark.parametrize(
    "function",
    [
        by_mask,
        by_masked_mean,
        by_places,
        by_places_of_where,
        by_labels_that_occur,
        by_repetition,
        by_a_tensor_of_tensors,
        by_a_new_tensor,
        by_splitting,
        by_memory,
    ],
)
def test_sizes_and_constants_that_values_decide_are_those_of_each_batch(function):
    assert check(function, network(nn.Tanh()), alike_at_first(24)) > 0


def test_masks_that_leave_sizes_as_they_are_are_played():
    def masked(net, batch):
        kept = torch.where((batch[1] == 1)[:, None], scores(net, batch), 0.0)
        return kept.masked_fill((batch[1] == 2)[:, None], 1.0).mean()

    assert check(masked, network(nn.Tanh()), alike_at_first(24)) == 0


def test_a_batch_that_cannot_be_played_is_multiplied_by_itself():
    def looked_up(net, batch):
        return (scores(net, batch).sum(1) * torch.arange(3.0)[batch[1]]).mean()

    net, v = network(nn.Tanh()), torch.ones(57, dtype=torch.float64)
    products = TorchBackend(net).batch_products(looked_up, net)
    for batch in batches(5, 12):
        products(batch, v)
    x, y = batch
    with pytest.raises(IndexError):
        products((x, y + 3), v)
    torch.testing.assert_close(products(batch, v), TorchBackend(net).hvp(looked_up, net, batch, v))


def test_a_loss_that_changes_is_called_each_time():
    counted = Counted()

    def changing(net, batch):
        counted.calls += 1
        return loss(net, batch) * counted.calls

    net, v = network(nn.Tanh()), torch.ones(57, dtype=torch.float64)
    products = TorchBackend(net).batch_products(changing, net)
    for batch in batches(5, 24):
        calls = counted.calls + 1
        found, expected = products(batch, v), TorchBackend(net).hvp(loss, net, batch, v) * calls
        torch.testing.assert_close(found, expected)


def test_a_loss_that_draws_numbers_is_called_each_time():
    net = network(nn.Tanh(), nn.Dropout(0.5)).train()
    counted, v = Counted(), torch.ones(57, dtype=torch.float64)
    products = TorchBackend(net).batch_products(counted, net)
    for batch in batches(5, 24):
        products(batch, v)
    assert counted.calls >= 24


def test_parameters_that_change_in_place_are_followed():
    net, v = network(nn.Tanh()), torch.ones(57, dtype=torch.float64)
    products = TorchBackend(net).batch_products(loss, net)
    for number, batch in enumerate(batches(5, 30)):
        if number == 20:
            with torch.no_grad():
                net[0].weight.mul_(1.5)
        torch.testing.assert_close(products(batch, v), TorchBackend(net).hvp(loss, net, batch, v))


def test_batches_of_other_shapes_are_recorded_by_themselves():
    net, v = network(nn.Tanh()), torch.ones(57, dtype=torch.float64)
    products = TorchBackend(net).batch_products(loss, net)
    for number, (x, y) in enumerate(batches(5, 40)):
        batch = x[: 5 + number % 2], y[: 5 + number % 2]
        torch.testing.assert_close(products(batch, v), TorchBackend(net).hvp(loss, net, batch, v))


def test_results_are_the_callers_own_in_any_mode():
    net, v = network(nn.Tanh()), torch.ones(57, dtype=torch.float64)
    products = TorchBackend(net).batch_products(loss, net)
    for number, batch in enumerate(batches(5, 24)):
        with torch.inference_mode(number % 3 == 0):
            found = products(batch, v)
        assert (found.requires_grad, found.is_inference()) == (False, False)
        kept = found.clone()
        found += 1.0
        assert torch.equal(products(batch, v), kept)


def test_a_solve_follows_the_model_between_calls():
    net = network(nn.Tanh())
    x, y = next(batches(5, 1))
    objective = ihvp.Objective(loss, net, (x, y))
    solver = ihvp.LiSSA(scale=5.0, recursion_depth=40, batch_size=6, average=0.0, rtol=None)
    inverse, v = ihvp.inverse(ihvp.Hessian(objective), 1.0, solver), torch.ones(57, dtype=torch.float64)
    first = inverse @ v
    net[0].weight = nn.Parameter(2 * net[0].weight.detach())
    second = inverse @ v
    fresh = ihvp.solve(ihvp.Hessian(ihvp.Objective(loss, net, (x, y))), v, damping=1.0, solver=solver).x
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, fresh)


def test_compiled_products_stay_compiled():
    net = network(nn.Tanh())
    assert not isinstance(TorchBackend(net, compile=True).batch_products(loss, net), Replayed)
