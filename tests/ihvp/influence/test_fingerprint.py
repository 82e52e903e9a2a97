"""Fingerprints: the same for the same, another for another, in every process."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
import math
import random
import subprocess
import sys
import threading
import types
import weakref

import numpy as np
import pytest

import ihvp
from ihvp.data import Batches
from ihvp.fingerprint import of_array, of_batch, of_data, of_function, of_objective, of_operator

X, Y = np.arange(24.0).reshape(8, 3), np.arange(8)
DECAY = 0.1


def cut(*stops):
    return [(X[a:b], Y[a:b]) for a, b in zip([0, *stops], [*stops, 8], strict=True)]


def test_how_examples_are_cut_does_not_enter():
    whole = of_data(Batches((X, Y)))
    assert whole == of_data(Batches((X, Y), 3)) == of_data(Batches(cut(1, 5))) == of_data(Batches(cut(4)))


@pytest.mark.parametrize(
    "other",
    [
        (X[::-1], Y),
        (X, Y + 1),
        (X.astype(np.float32), Y),
        (X.reshape(8, 3, 1), Y),
        (X[:7], Y[:7]),
        {"x": X, "y": Y},
        (np.where(X == 5, np.nextafter(5, 6), X), Y),
        (np.where(X == 0, -0.0, X), Y),
    ],
)
def test_other_data_has_another(other):
    assert of_data(Batches(other)) != of_data(Batches((X, Y)))


def test_padded_batches_of_other_widths_are_told_apart():
    one, two = (of_data(Batches([X[:4].reshape(shape), X[4:]])) for shape in ((4, 3), (6, 2)))
    assert one != two


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "bc"]),
        np.array(["a", None], dtype=object),
        np.array(["2024-01-01"], dtype="datetime64[D]"),
        np.array([True, False]),
        np.zeros((0, 3)),
        np.array([1 + 2j]),
        np.asfortranarray(X),
        X[::2],
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_every_kind_have_one(array):
    assert of_array(array) == of_array(array.copy())


def test_entries_that_are_no_arrays_enter_by_value_or_by_type():
    assert of_batch({"x": X, "name": "a"}) != of_batch({"x": X, "name": "b"})
    assert of_batch({"x": X, "extra": object()}) == of_batch({"x": X, "extra": object()})


def scaled(w, batch, *, scale=1.0):
    return scale * DECAY * w


def helped(w, batch):
    return scaled(w, batch)


def of_label(label):
    return lambda w, batch: w[label]


class Loss:
    def __init__(self, decay):
        self.decay = decay

    def __call__(self, w, batch):
        return self.decay * w


def test_a_loss_is_known_by_its_code_and_by_what_it_refers_to(monkeypatch):
    different = [
        of_function(function)
        for function in (
            lambda w, batch: w,
            lambda w, batch: w + 1,
            lambda w, batch, a=1: w,
            lambda w, batch, a=2: w,
            of_label(0),
            of_label(1),
            of_label(X[0]),
            of_label(X[1]),
            scaled,
            helped,
            functools.partial(scaled, scale=2.0),
            functools.partial(scaled, scale=3.0),
            functools.partial(scaled, 2.0),
            of_label([0, 1]),
            of_label([0, 2]),
            of_label({0, 1}),
            of_label({"label": X[0]}),
            of_label({"label": X[1]}),
            of_label({"margin": X[0]}),
            of_label({"labels": [[{"one": 1}]]}),
            of_label({"labels": [[{"one": 2}]]}),
            Loss(0.1),
            Loss(0.2),
            np.sum,
            np.mean,
        )
    ]
    monkeypatch.setitem(globals(), "DECAY", 0.2)
    different += [of_function(scaled), of_function(helped)]
    assert len(set(different)) == len(different)


def test_a_loss_of_two_parts_is_known_by_both():
    def predicted(predict, loss):
        objective = ihvp.Objective(loss, np.ones(2), predict=predict, grad=lambda w, batch: w)
        return of_function(objective._value)

    def double(w, batch):
        return 2 * w

    def triple(w, batch):
        return 3 * w

    found = {predicted(a, b) for a in (double, triple) for b in (double, triple)}
    assert len(found) == 4


def test_a_recursive_loss_has_one():
    def depth(w, batch):
        return w if batch is None else depth(w, batch[1:])

    assert of_function(depth) == of_function(depth)


def test_a_container_that_holds_itself_has_one():
    def holding(value):
        container = {"value": value}
        container["self"] = [container]
        return of_label(container)

    assert of_function(holding(1)) == of_function(holding(1))
    assert of_function(holding(1)) != of_function(holding(2))


class Net:
    scale = 1.0

    def __init__(self, a=1.0, hidden=1.0, table=1.0):
        self.a, self._hidden, self._table = a, hidden, {"rows": [np.full(2, table)]}

    def grad(self, w, batch):
        return self.a * self._inner(w) * self.scale

    def _inner(self, w):
        return self._hidden * w * self._table["rows"][0][0]

    @property
    def twice(self):
        return 2 * self._hidden

    @staticmethod
    def free(w, batch):
        return w


class Wider(Net):
    def _inner(self, w):
        return 2 * super()._inner(w)


class Slotted:
    __slots__ = ("__dict__", "_decay", "decay")

    def __init__(self, decay=0.0, hidden=0.0):
        self.decay, self._decay = decay, hidden

    def grad(self, w, batch):
        return (self.decay + self._decay) * w


@dataclasses.dataclass
class Config:
    decay: float = 0.1
    inner: object = None


def closed_over(net):
    return lambda w, batch: net.grad(w, batch)


def of_config(cfg):
    return lambda w, batch: cfg.decay * w


def test_a_loss_is_known_by_the_objects_that_it_refers_to():
    namespaces = [types.SimpleNamespace(decay=decay) for decay in (0.1, 0.2)]
    losses = [
        *map(closed_over, (Net(), Net(a=2.0), Net(hidden=2.0), Net(table=2.0), Wider())),
        *(net.grad for net in (Net(), Net(a=2.0), Net(hidden=2.0), Wider())),
        *map(closed_over, (Slotted(), Slotted(decay=1.0), Slotted(hidden=1.0))),
        *map(of_config, namespaces),
        *map(of_config, (Config(0.1), Config(0.2), Config(inner=Net()), Config(inner=Net(a=2.0)))),
        *map(of_config, ([Config(0.1)], [Config(0.2)], (Net(),), {"net": Net()}, {"net": Net(a=2.0)})),
        functools.partial(Net().grad),
        functools.partial(Net(a=2.0).grad),
        Net.free,
    ]
    assert len({of_function(loss) for loss in losses}) == len(losses)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net, "a", 2.0),
        lambda net: setattr(net, "_hidden", 2.0),
        lambda net: setattr(net, "added", 2.0),
        lambda net: net._table["rows"].append(1),
        lambda net: net._table["rows"][0].fill(3.0),
        lambda net: setattr(net, "grad", lambda w, batch: w),
    ],
)
def test_an_object_that_is_changed_in_place_has_another(change):
    net = Net()
    through, method = closed_over(net), net.grad
    before = of_function(through), of_function(method)
    assert (of_function(through), of_function(method)) == before
    change(net)
    assert of_function(through) != before[0]
    assert of_function(method) != before[1]


def test_a_class_that_is_changed_has_another(monkeypatch):
    losses = closed_over(Net()), Net().grad, lambda w, batch: Net.scale * w, lambda w, batch: Net().a
    before = [of_function(loss) for loss in losses]
    monkeypatch.setattr(Net, "scale", 2.0)
    after = [of_function(loss) for loss in losses]
    assert not set(before) & set(after)
    monkeypatch.setattr(Net, "_inner", lambda self, w: w)
    assert not set(after) & {of_function(loss) for loss in losses}
    twice = of_function(losses[0])
    monkeypatch.setattr(Net, "twice", property(lambda self: 3))
    assert of_function(losses[0]) != twice


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A module of the user's, of which losses read a part."""
    source = (
        "import numpy as np\nSCALE, UNUSED, ROWS = 2.0, 1.0, np.ones(2)\n"
        "def penalty(w): return SCALE * w\ndef rows(w): return ROWS * w\n"
    )
    (tmp_path / "users_settings.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import users_settings

    monkeypatch.setitem(globals(), "settings_module", users_settings)
    monkeypatch.setitem(globals(), "penalty", users_settings.penalty)
    yield users_settings
    del sys.modules["users_settings"]


def test_functions_that_are_imported_by_name_enter_and_other_modules_variables_do_not(settings):
    losses = [
        lambda w, batch: penalty(w),  # noqa: F821
        lambda w, batch: settings_module.SCALE * w,  # noqa: F821
    ]
    before = [of_function(loss) for loss in losses]
    settings.UNUSED = 5.0
    assert [of_function(loss) for loss in losses] == before
    settings.SCALE = 3.0
    assert [of_function(loss) != old for loss, old in zip(losses, before, strict=True)] == [True, False]


def test_a_variable_of_a_comprehension_enters():
    assert of_function(lambda w, batch: [DECAY * x for x in batch]) != of_function(
        lambda w, batch: [SCALES * x for x in batch]
    )


SCALES = 3.0


class Busy:
    """A loss with all that differs between runs."""

    def __init__(self):
        self.decay = 0.1
        self.lock, self.random, self.generator = threading.Lock(), random.Random(), np.random.default_rng()
        self.condition, self.logger, self.local = (
            threading.Condition(),
            logging.getLogger("x"),
            threading.local(),
        )
        self.reference, self.table = weakref.ref(self), weakref.WeakValueDictionary()
        self.iterator, self.file = iter(range(10)), sys.stdout
        self.owner, self.objects = self, {object(), object(), Net()}

    def __call__(self, w, batch):
        next(self.iterator)
        self.random.random(), self.generator.random()
        return self.kept * w

    @functools.cached_property
    def kept(self):
        return self.decay

    @functools.lru_cache  # noqa: B019
    def squared(self, number):
        return number**2


@pytest.mark.parametrize("form", [lambda loss: loss, lambda loss: loss.__call__, closed_over])
def test_what_differs_between_runs_does_not_enter(form):
    loss = Busy()
    loss.grad = loss.__call__
    before = of_function(form(loss))
    loss(1.0, [1])
    assert of_function(form(loss)) == before
    other = Busy()
    other.grad = other.__call__
    assert of_function(form(other)) == before
    other.decay = 0.2
    assert of_function(form(other)) != before


def test_a_loss_that_changes_what_it_refers_to_becomes_another():
    calls, cache = 0, {}

    def counting(w, batch):
        nonlocal calls
        calls += 1

    def caching(w, batch):
        cache[len(batch)] = w

    for loss in (counting, caching):
        before = of_function(loss)
        loss(1.0, [1])
        assert of_function(loss) != before


def test_objects_within_objects_are_known_by_their_class():
    def of_inner(inner):
        outer = Net()
        outer.inner = inner
        return of_function(closed_over(outer))

    assert of_inner(Net(1.0)) == of_inner(Net(2.0)) != of_inner(Wider())
    assert of_inner(Config(0.1)) != of_inner(Config(0.2))
    assert of_inner([Net.free, 1]) != of_inner([Net.free, 2])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.dtype("float32"), np.dtype("float64")),
        (slice(1), slice(2)),
        (math.sqrt, math.exp),
        (np.exp, np.log),
        (range(2), range(3)),
        (1, True),
        (datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)),
    ],
)
def test_values_without_attributes_are_known_by_what_they_print(one, other):
    assert of_function(of_label(one)) == of_function(of_label(one)) != of_function(of_label(other))


def test_a_setter_that_the_loss_does_not_call_hides_nothing():
    class Settable(Net):
        def set_a(self, a):
            self.a = a

    net = Settable()
    before = of_function(closed_over(net))
    net.set_a(5.0)
    assert of_function(closed_over(net)) != before


def test_arrays_are_read_once(monkeypatch):
    from ihvp import contents

    read = []
    original = contents.array_bytes
    monkeypatch.setattr(contents, "array_bytes", lambda array: read.append(array) or original(array))
    shared = np.ones(3)
    net = Net()
    net.one, net.two, net.more = shared, shared, [shared, {"three": shared}]
    of_function(lambda w, batch: (net.grad(w, batch), shared, net.one))
    assert sum(array.size == 3 for array in read) == 1


def of_params(params, loss=None):
    return of_objective(ihvp.Objective(loss or (lambda w, batch: 0), params))


def test_a_torch_module_is_known_by_all_that_a_loss_reads_through_it():
    torch = pytest.importorskip("torch")

    class Scaled(torch.nn.Module):
        def __init__(self, scale=2.0):
            super().__init__()
            self._scale, self.linear = scale, torch.nn.Linear(2, 2)
            self.register_buffer("shift", torch.zeros(2), persistent=False)
            self.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)

        def forward(self, x):
            return self._scale * self.linear(x) + self.shift

    class Other(Scaled):
        def forward(self, x):
            return 2 * super().forward(x)

    def model(inner=Scaled, rate=0.5, **options):
        torch.manual_seed(0)
        layers = torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout(rate), inner(**options)
        whole = torch.nn.Sequential(*layers).eval()
        whole[0].requires_grad_(False)
        return whole

    first = of_params(model())
    assert of_params(model()) == first
    used = model()
    used(torch.ones(3, 2))
    assert of_params(used) == first

    def differing(change=lambda whole: None, **options):
        whole = model(**options)
        with torch.no_grad():
            change(whole)
        found = of_params(whole)
        return {name for name in first if found[name] != first[name]}

    assert differing(lambda whole: whole[3].linear.weight.add_(1)) == {"parameters"}
    assert differing(lambda whole: whole[0].weight.add_(1)) == {"model"}
    assert differing(lambda whole: whole[1].running_mean.add_(1)) == {"model"}
    assert differing(lambda whole: whole[3].shift.add_(1)) == {"model"}
    assert differing(lambda whole: whole.train()) == {"model"}
    assert differing(rate=0.4) == differing(scale=3.0) == differing(inner=Other) == {"model"}


def test_a_keras_model_is_known_by_all_that_a_loss_reads_through_it():
    keras = pytest.importorskip("keras")

    class Scaled(keras.Model):
        def __init__(self, scale=2.0, activation="tanh"):
            super().__init__()
            self.scale, self.dense = scale, keras.layers.Dense(2, activation=activation)
            self.norm = keras.layers.BatchNormalization()
            self.frozen = keras.layers.Dense(2, trainable=False)

        def call(self, x):
            return self.scale * self.norm(self.dense(self.frozen(x)))

    class Other(Scaled):
        def call(self, x):
            return 2 * super().call(x)

    def model(kind=Scaled, **options):
        keras.utils.set_random_seed(0)
        whole = kind(**options)
        whole(np.ones((3, 2), np.float32))
        whole.compile("adam", "mse")
        return whole

    def raised(layer, number):
        weights = layer.get_weights()
        weights[number] = weights[number] + 1
        layer.set_weights(weights)

    first = of_params(model())
    assert of_params(model()) == first
    used = model()
    used(np.zeros((3, 2), np.float32))
    assert of_params(used) == first

    def differing(change=lambda whole: None, **options):
        whole = model(**options)
        change(whole)
        found = of_params(whole)
        return {name for name in first if found[name] != first[name]}

    assert differing(lambda whole: raised(whole.dense, 0)) == {"parameters"}
    assert differing(lambda whole: raised(whole.frozen, 0)) == {"model"}
    assert differing(lambda whole: raised(whole.norm, 2)) == {"model"}
    assert differing(activation="relu") == differing(scale=3.0) == differing(kind=Other) == {"model"}


def test_parameters_that_are_arrays_have_no_other_model():
    one, other = (
        of_objective(ihvp.Objective(params={"w": value}, grad=lambda w, batch: w)) for value in (X, X + 1)
    )
    assert {name for name in one if one[name] != other[name]} == {"parameters"}


def test_a_curvature_of_the_users_is_known_by_its_code_and_its_parts(small):
    class Mine(ihvp.LinearOperator):
        def __init__(self, space, factor):
            super().__init__(space)
            self._factor = factor

        def apply(self, v):
            return self._factor * v

    class Mine2(Mine):
        def apply(self, v):
            return v

    objective = small.objective()
    Mine2.__name__ = "Mine"
    other = [Mine(objective.space, 2.0), Mine(objective.space, 3.0), Mine2(objective.space, 2.0)]
    assert len({of_operator(A, objective) for A in other}) == 3
    assert of_operator(other[0], objective) == of_operator(Mine(objective.space, 2.0), objective)


def test_curvatures_are_known_by_what_they_are_made_of(small):
    objective = small.objective()
    values, vectors = np.linalg.eigh(small.hessian)
    other = [
        ihvp.Hessian(objective),
        ihvp.Hessian(small.objective(small.test)),
        ihvp.OPG(objective),
        ihvp.Dense(small.hessian),
        ihvp.Dense(2 * small.hessian),
        ihvp.LowRank.of(values[:3], vectors[:, :3]),
        ihvp.LowRank.of(values[:4], vectors[:, :4]),
        2 * ihvp.Hessian(objective),
        3 * ihvp.Hessian(objective),
        ihvp.Hessian(objective) + 0.5,
        ihvp.Hessian(objective) + ihvp.Dense(small.hessian),
    ]
    assert len({of_operator(A, objective) for A in other}) == len(other)
    assert of_operator(other[0], objective) == of_operator(ihvp.Hessian(objective), objective)


PROGRAM = """
import random, threading, time, types, weakref
import numpy as np
from ihvp.fingerprint import of_function

class Net:
    def __init__(self):
        self.a, self._b = 1.0, [np.ones(2)]
        self.lock, self.random, self.generator = threading.Lock(), random.Random(), np.random.default_rng()
        self.ref, self.tokens, self.kinds = weakref.ref(self), {object(), len}, {Net, int, "a"}
        self.settings = types.SimpleNamespace(names={"a", "b", "c"}, net=self)
    def grad(self, w): return self.a * self._b[0] * w

net = Net()
def loss(w, batch, names={"a", "b", "c"}):
    return net.grad(w) if batch in {"x", "yy", "zzz"} else len(names)
print(of_function(loss), of_function(net.grad), of_function(lambda w, batch: net.grad(w)))
"""


def test_processes_agree():
    runs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
