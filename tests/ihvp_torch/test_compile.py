from __future__ import annotations

import gc
import logging
import shutil
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from ihvp.errors import ChangedInPlace, InvalidOption, LossNotScalar
from ihvp_torch import _backend, _compile, _program, _ski_rental
from ihvp_torch._backend import TorchBackend
from ihvp_torch._fallback import FirstThatWorks

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs g++")


class Counted:
    """A loss that counts its calls."""

    def __init__(self, loss):
        self.loss, self.calls = loss, 0

    def __call__(self, params, batch):
        self.calls += 1
        return self.loss(params, batch)


@pytest.fixture
def traced(monkeypatch):
    """A backend that runs what it traced without waiting for a compiler."""
    monkeypatch.setattr(_program, "_lower", lambda module, inputs: module)
    return TorchBackend(compile=True)


@pytest.fixture
def compared(traced, backend, vector):
    """Compares products of both backends, for one loss; whether the traced one looked at it again."""

    def compare(loss, params, batch, v=None):
        v = vector if v is None else v
        counted = loss if isinstance(loss, Counted) else Counted(loss)
        before = counted.calls
        result = traced.hvp(counted, params, batch, v)
        again = counted.calls > before
        torch.testing.assert_close(result, backend.hvp(counted.loss, params, batch, v))
        return again

    return compare


@needs_compiler
@pytest.mark.parametrize("columns", [None, 3])
def test_compiled_products_are_the_hessians(net, square_loss, batch, hessian, columns):
    backend = TorchBackend(net, compile=True)
    v = np.random.default_rng(3).standard_normal((26, columns) if columns else 26)
    before = [p.detach().clone() for p in net.parameters()]
    product = backend.linearize(square_loss, net, batch)
    np.testing.assert_allclose(product(torch.from_numpy(v)).numpy(), hessian @ v, rtol=1e-7, atol=1e-9)
    assert all(p.equal(b) and p.grad is None for p, b in zip(net.parameters(), before, strict=True))


@needs_compiler
def test_missing_compiler_is_named(net, square_loss, batch, vector, monkeypatch):
    from torch._inductor import config

    backend = TorchBackend(net, compile=True)
    with (
        config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}),
        pytest.raises(InvalidOption, match=r"compile is True.*g\+\+.*no-such-compiler"),
    ):
        backend.hvp(square_loss, net, batch, vector)


def test_loss_is_traced_once(compared, net, square_loss, batch):
    loss = Counted(square_loss)
    assert compared(loss, net, batch)
    assert not compared(loss, net, batch)
    assert not compared(loss, net, tuple(2 * array for array in batch))


def test_other_shapes_are_traced_anew(compared, net, square_loss, batch):
    loss = Counted(square_loss)
    compared(loss, net, batch)
    assert compared(loss, net, tuple(array[:3] for array in batch))
    assert not compared(loss, net, tuple(array[2:] for array in batch))


@pytest.mark.parametrize("where", ["in place", "replaced", "as a state"])
def test_parameters_are_read_at_every_product(compared, traced, net, square_loss, batch, where):
    loss = Counted(square_loss)
    compared(loss, net, batch)
    params = net
    if where == "in place":
        with torch.no_grad():
            net.out.weight.mul_(3.0)
    elif where == "replaced":
        net.out.weight = nn.Parameter(net.out.weight.detach() * 3.0)
    else:
        params = traced.unflatten(traced.flatten(net) * 3.0, net)
    assert not compared(loss, params, batch)


def test_linearisation_follows_the_parameters(traced, backend, net, square_loss, batch, vector):
    product = traced.linearize(square_loss, net, batch)
    product(vector)
    with torch.no_grad():
        net.hidden.weight.add_(0.5)
    torch.testing.assert_close(product(vector), backend.hvp(square_loss, net, batch, vector))


def test_frozen_parameters_are_read_at_every_product(compared, net, square_loss, batch, vector):
    net.hidden.requires_grad_(False)
    loss = Counted(square_loss)
    compared(loss, net, batch, vector[16:])
    with torch.no_grad():
        net.hidden.weight.mul_(2.0)
    assert not compared(loss, net, batch, vector[16:])


@pytest.fixture
def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def test_buffers_are_read_at_every_product_and_stay(compared, normed, square_loss, batch):
    v = torch.linspace(-1, 1, 34, dtype=torch.float64)
    loss = Counted(square_loss)
    normed[2].p = 0.0
    compared(loss, normed, batch, v)
    assert normed[1].num_batches_tracked == 0
    normed.eval()
    compared(loss, normed, batch, v)
    normed[1].running_mean += 1.0
    normed[1].running_var *= 2.0
    assert not compared(loss, normed, batch, v)


def test_mode_of_a_module_counts(compared, traced, normed, square_loss, batch):
    v = torch.ones(34, dtype=torch.float64)
    loss = Counted(square_loss)
    assert not traced.hvp(loss, normed, batch, v).equal(traced.hvp(loss, normed, batch, v))  # dropout
    compared(loss, normed.eval(), batch, v)


def test_entries_of_a_batch_that_are_no_arrays_count(compared, net, square_loss, batch):
    loss = Counted(lambda model, data: square_loss(model, data["xy"]) * data["weight"])
    for weight in (1.0, 2.0, 3):
        compared(loss, net, {"xy": batch, "weight": weight})


def test_tensors_from_elsewhere_are_read_at_every_product(compared, net, square_loss, batch):
    factor = torch.tensor([2.0], dtype=torch.float64)
    loss = Counted(lambda model, data: square_loss(model, data) * factor.sum())
    compared(loss, net, batch)
    factor *= 5.0
    assert not compared(loss, net, batch)


@pytest.mark.parametrize(
    "weight",
    [
        lambda x: 2.0 if x.sum() > 0 else 1.0,
        lambda x: x.sum().item(),
        lambda x: float(np.abs(x.detach().numpy()).sum()),
        lambda x: np.log(len(x.tolist()) + x[0, 0].item()),
    ],
    ids=["branch", "item", "numpy", "list"],
)
def test_what_depends_on_values_is_not_compiled(compared, net, square_loss, batch, weight, caplog):
    x, y = abs(batch[0]), batch[1]
    loss = Counted(lambda model, data: square_loss(model, data) * weight(data[0]))
    with caplog.at_level(logging.WARNING, "ihvp"):
        for sign in (1, 3, -0.1):
            assert compared(loss, net, (sign * x, y))
    assert sum("not compiled" in record.message for record in caplog.records) == 1


def test_methods_belong_to_their_objects(traced, net, square_loss, batch, vector):
    class Scaled:
        def __init__(self, scale):
            self.scale = scale

        def loss(self, model, data):
            return self.scale * square_loss(model, data)

    one, ten = Scaled(1.0), Scaled(10.0)
    product = traced.hvp(one.loss, net, batch, vector)
    torch.testing.assert_close(traced.hvp(ten.loss, net, batch, vector), 10 * product)


def test_retied_parameters_are_traced_anew(compared, batch):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    loss = Counted(lambda m, data: m(data[0]).pow(3).mean())
    model[1].weight = model[0].weight
    compared(loss, model, batch, torch.ones(15, dtype=torch.float64))
    model[1].bias = model[0].bias
    model[1].weight = nn.Parameter(model[0].weight.detach().clone())
    compared(loss, model, batch, torch.ones(21, dtype=torch.float64))


@pytest.mark.parametrize("columns", [1, 2, 5, 8, 40])
def test_blocks_of_any_width(compared, net, square_loss, batch, columns):
    block = torch.randn(26, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    compared(square_loss, net, batch, block)


def test_result_is_the_callers_own(traced):
    w = [torch.ones(3)]
    product = traced.linearize(lambda p, _: p[0].square().sum() / 2, w, None)
    v = torch.arange(3.0)
    first = product(v)
    first += 1.0
    assert product(v).tolist() == v.tolist() == [0.0, 1.0, 2.0]


def test_errors_are_those_without_compilation(traced, net, batch, vector):
    with pytest.raises(LossNotScalar):
        traced.linearize(lambda model, data: model(data[0]), net, batch)


def test_error_of_the_loss_has_no_other_behind_it(traced, net, batch, vector):
    with pytest.raises(ZeroDivisionError) as caught:
        traced.hvp(lambda model, data: 1 / 0, net, batch, vector)
    assert caught.value.__context__ is None


def test_size_counts_what_is_kept(traced, net, square_loss, batch, vector):
    product = traced.linearize(square_loss, net, batch)
    assert product.nbytes == 0
    product(vector)
    assert 5 * 4 * 8 <= product.nbytes <= 5 * 64 * 8


def test_programs_live_as_long_as_the_loss_and_the_module(traced, square_loss, batch, vector):
    from tests.ihvp_torch.conftest import TanhNet

    net = TanhNet()
    loss = Counted(square_loss)
    traced.hvp(loss, net, batch, vector)
    (shelf,) = traced._compiler._shelves.values()
    gone = [weakref.ref(net), weakref.ref(loss)]
    del net
    gc.collect()
    assert gone[0]() is None
    assert len(shelf) == 0
    del loss
    gc.collect()
    assert gone[1]() is None
    assert len(traced._compiler._shelves) == 0


class Slow:
    """The torch of compile="auto" in faked seconds: 30 to compile, 4 an eager product, 1 a compiled one."""

    compilation, eager, compiled = 15.0, 4.0, 1.0  # a program has two graphs

    def __init__(self, monkeypatch):
        self.now, self.lowered = 0.0, 0
        self.compiler = _compile.Compiler()
        monkeypatch.setattr(_backend, "PATIENT", self.compiler)
        monkeypatch.setattr(_backend, "compiler_is_there", lambda: True)
        monkeypatch.setattr(_ski_rental, "perf_counter", lambda: self.now)
        monkeypatch.setattr(_program, "_lower", self.lower)
        for kind, name, attribute in (
            (FirstThatWorks, "__call__", "eager"),
            (_program.Program, "multiply", "compiled"),
        ):
            monkeypatch.setattr(kind, name, self.taking(getattr(kind, name), attribute))

    def lower(self, module, inputs):
        self.now += self.compilation
        self.lowered += 1
        return module

    def taking(self, method, attribute):
        def slow(*arguments):
            self.now += getattr(self, attribute)
            return method(*arguments)

        return slow

    def products(self, count, loss, params, batch, v):
        """The faked seconds of products by one linearised gradient, which are those of eager torch."""
        product, taken = TorchBackend(params).linearize(loss, params, batch), []
        expected = TorchBackend(params, compile=False).linearize(loss, params, batch)(v)
        for _ in range(count):
            before = self.now
            torch.testing.assert_close(product(v), expected)
            taken.append(self.now - before)
        return taken


@pytest.fixture
def slow(monkeypatch):
    return Slow(monkeypatch)


@pytest.mark.parametrize("columns", [0, 3])
def test_compilation_starts_when_eager_products_have_taken_as_long(slow, net, square_loss, batch, columns):
    v = torch.linspace(-1, 1, 26 * max(1, columns), dtype=torch.float64).reshape(26, *[-1][:columns])
    *eager, switch, then, last = slow.products(11, square_loss, net, batch, v)
    assert eager == [4.0] * 8  # 32 seconds
    assert 30.0 <= slow.compiler.expected < switch
    assert [then, last] == [1.0, 1.0]
    before = slow.lowered
    again = slow.products(6, square_loss, net, batch, v)
    assert again == [4.0, 4.0, 4.0, 4.0, 4.0 + 1.0 + 1.0, 1.0]
    assert slow.lowered == before


def test_vectors_that_come_alone_stay_eager(slow, net, square_loss, batch, vector):
    for _ in range(12):
        TorchBackend().hvp(square_loss, net, batch, vector)
    assert slow.now == 48.0
    assert not slow.compiler._shelves  # nor do they pay for finding programs


@pytest.mark.parametrize("reason", ["other", "slower", "fails", "no compiler", "branch", "random", "wide"])
def test_where_compilation_does_not_help_products_stay_eager(
    slow, net, square_loss, batch, vector, caplog, monkeypatch, reason
):
    def failing(module, inputs):
        raise InvalidOption("compile", True, "g++") if reason == "no compiler" else _program.CannotCompile

    def loss(model, data):
        if reason == "branch" and data[0].sum() > 1e3:
            return square_loss(model, data)
        noise = torch.rand(()) * 1e-30 if reason == "random" else 0.0
        return factor * square_loss(model, data) + noise * model.out.bias.pow(4).sum()

    factor = 2.0
    if reason in ("fails", "no compiler"):
        monkeypatch.setattr(_program, "_lower", failing)
    if reason == "slower":
        slow.compiled = 5.0
    if reason == "wide":
        monkeypatch.setattr(_ski_rental, "_WIDEST", 20)
    if reason == "other":
        slow.products(10, loss, net, batch, vector)
        factor = 3.0
    drawn = torch.get_rng_state()
    with caplog.at_level(logging.INFO, "ihvp"):
        taken = slow.products(12, loss, net, batch, vector)
    assert taken[-1] == 4.0
    assert sum("stay eager" in record.message for record in caplog.records) == 1
    assert slow.products(12, loss, net, batch, vector)[:4] == [4.0] * 4
    assert reason == "random" or torch.get_rng_state().equal(drawn)


def test_changed_data_is_noticed_by_programs_too(slow, net, square_loss, batch, vector):
    x, y = map(torch.tensor, batch)
    product = TorchBackend().linearize(square_loss, net, (x, y))
    for _ in range(10):
        product(vector)
    before = slow.now
    product(vector)
    assert slow.now - before == 1.0
    x += 1.0
    with pytest.raises(ChangedInPlace):
        product(vector)
