"""Data sets with some wrong labels, and the networks that are trained on them, again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import ihvp

Data = tuple[Tensor, Tensor]

_WRONG, _TUNING, _JUDGED = 0.08, 20, 30
"""The part of the training labels that is wrong; and how many test points choose dampings, and judge."""
_CHECKPOINTS, _DIM = 5, 2048


@dataclass(frozen=True)
class Task:
    """A data set and a network."""

    name: str
    title: str
    read: Callable[[], Data]
    net: Callable[[], nn.Module]
    decay: float  # γ of the regulariser γ/2 ‖ω‖², a part of what is minimised
    steps: int = 0  # of Adam over all the data, with a cosine; 0: L-BFGS to the optimum
    seeds: int = 1  # trainings on each of the subsets that judge
    subsets: int = 60
    rate: float = 0.01
    training: int = 300
    start: Callable[[nn.Module], None] = lambda net: None  # what the network has learnt before a training


@dataclass(frozen=True)
class Split:
    """The parts of a task's data, and which training labels are wrong."""

    training: Data
    tuning: Data
    judged: Data
    wrong: np.ndarray


class _Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.unflatten(1, (1, 8, 8))))
        return self.head(torch.tanh(self.second(x)).flatten(1))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """A classifier of sentences: embeddings, one layer of attention and one of a perceptron."""

    def __init__(self, words: int, length: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places(torch.arange(x.shape[1]))
        weights = self.query(h) @ self.key(h).mT / h.shape[-1] ** 0.5
        h = h + weights.softmax(-1) @ self.value(h)
        h = h + self.second(torch.relu(self.first(h)))
        return self.head(h.mean(1))  # type: ignore[no-any-return]


def _digits() -> Data:
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)


def _breast_cancer() -> Data:
    x, y = load_breast_cancer(return_X_y=True)
    return torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32), torch.tensor(y)


_TOPICS = (
    "rain wind cloud storm sun snow fog frost",
    "bread soup apple cheese salt rice pepper tea",
    "train road ticket bridge harbour map hotel boat",
    "song drum dance violin choir stage tune piano",
)
_ANYWHERE = "the a we they some old new long good saw had left near with and over before after more small"
_LENGTH = 10


def _sentences() -> Data:
    """Two or three words of a topic among others; every third sentence has one word of another topic."""
    rng = np.random.default_rng(0)
    topics, anywhere = [words.split() for words in _TOPICS], _ANYWHERE.split()
    number = {word: i for i, word in enumerate([*anywhere, *" ".join(_TOPICS).split()])}
    rows, labels = [], rng.integers(0, len(topics), 900)
    for label in labels:
        own = rng.choice(topics[label], rng.integers(2, 4), replace=False).tolist()
        if rng.random() < 1 / 3:
            own.append(rng.choice(topics[(label + rng.integers(1, 4)) % 4]))
        sentence = [*own, *rng.choice(anywhere, _LENGTH - len(own))]
        rows.append([number[word] for word in rng.permutation(sentence)])
    return torch.tensor(rows), torch.tensor(labels)


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def _sentence_classifier() -> nn.Module:
    return _Attention(len(" ".join((_ANYWHERE, *_TOPICS)).split()), _LENGTH, len(_TOPICS))


def _know_other_sentences(net: nn.Module) -> None:
    """Begin with what was learnt from other sentences, but with a new head: trainings tune it further.

    From random embeddings two trainings on the same half agree so little (their losses have a rank
    correlation of 0.17 over halves) that no score could foretell either.
    """
    net.load_state_dict(_sentence_encoder())


@cache
def _sentence_encoder() -> dict[str, Tensor]:
    task = TASKS["sentences"]
    x, y = _sentences()
    others = torch.tensor(np.random.default_rng(0).permutation(len(y))[task.training + _TUNING + _JUDGED :])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = task.net()
        _by_adam(net, x[others], y[others], 0.01, task.decay, task.steps)
        net.head.reset_parameters()  # type: ignore[operator, union-attr]
    return net.state_dict()


_ALL = (
    Task("breast-cancer", "Breast cancer, logistic regression", _breast_cancer,
         lambda: nn.Sequential(nn.Linear(30, 2)), 0.01, subsets=80),
    Task("softmax", "Digits, softmax regression", _digits,
         lambda: nn.Sequential(nn.Linear(64, 10)), 0.01, subsets=80),
    Task("mlp", "Digits, perceptron 64–32–10", _digits, _perceptron, 1e-3, 200, 2),
    Task("cnn", "Digits, convolutions", _digits, _Convolutions, 1e-3, 100, 2),
    Task("sentences", "Sentences, attention, tuned from other sentences", _sentences, _sentence_classifier,
         1e-3, 100, rate=0.003, start=_know_other_sentences),
)  # fmt: skip
TASKS = {task.name: task for task in _ALL}


@cache
def split(name: str) -> Split:
    """The task's data, its training labels made wrong in part."""
    task, rng = TASKS[name], np.random.default_rng(0)
    x, y = task.read()
    order = torch.tensor(rng.permutation(len(y)))
    parts = order.split([task.training, _TUNING, _JUDGED, len(y) - task.training - _TUNING - _JUDGED])
    labels, classes = y[parts[0]].clone(), int(y.max()) + 1
    wrong = np.zeros(task.training, dtype=bool)
    wrong[rng.permutation(task.training)[: round(_WRONG * task.training)]] = True
    off = torch.tensor(rng.integers(1, classes, int(wrong.sum())))
    labels[torch.tensor(wrong)] = (labels[torch.tensor(wrong)] + off) % classes
    return Split((x[parts[0]], labels), *((x[part], y[part]) for part in parts[1:3]), wrong)


def loss(outputs: Tensor, batch: Data) -> Tensor:
    """Cross-entropy; the decay, which all examples share, is the same for all subsets of one size."""
    return cross_entropy(outputs, batch[1])


def predict(net: nn.Module, batch: Data) -> Tensor:
    """The logits."""
    return net(batch[0])  # type: ignore[no-any-return]


def trained(name: str, kept: Any, seed: int, checkpoints: list[Any] | None = None) -> nn.Module:
    """The network after training on the examples ``kept``; its states on the way are appended."""
    task, (x, y) = TASKS[name], split(name).training
    x, y = x[torch.as_tensor(kept)], y[torch.as_tensor(kept)]
    torch.manual_seed(seed)
    net = task.net()
    task.start(net)
    if not task.steps:  # convex: to an optimum that float32 cannot tell from it
        net = net.double()
        for p in net.parameters():
            nn.init.zeros_(p)
        _to_optimum(net, x.double(), y, task.decay, checkpoints)
        return net.float()
    _by_adam(net, x, y, task.rate, task.decay, task.steps, checkpoints)
    return net


def _by_adam(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    rate: float,
    decay: float,
    steps: int,
    checkpoints: list[Any] | None = None,
) -> None:
    # Its weight decay is the derivative of the regulariser.
    optimizer = torch.optim.Adam(net.parameters(), rate, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
        schedule.step()
        if step * _CHECKPOINTS % steps == 0:
            _keep(net, checkpoints)


def _to_optimum(net: nn.Module, x: Tensor, y: Tensor, decay: float, checkpoints: list[Any] | None) -> None:
    params = list(net.parameters())
    optimizer = torch.optim.LBFGS(
        params, max_iter=10, tolerance_grad=1e-7, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def value() -> Tensor:
        optimizer.zero_grad()
        total = cross_entropy(net(x), y) + decay / 2 * sum((p**2).sum() for p in params)
        total.backward()
        return total

    for _ in range(_CHECKPOINTS):
        optimizer.step(value)
        _keep(net, checkpoints)


def _keep(net: nn.Module, checkpoints: list[Any] | None) -> None:
    if checkpoints is not None:
        checkpoints.append({name: value.detach().float().clone() for name, value in net.state_dict().items()})


class Trained:
    """A task with its trained network, as methods see it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.task, self.split, self.folder = TASKS[name], split(name), folder
        file = folder / "checkpoints.pt"
        if not file.exists():
            states: list[Any] = []
            trained(name, range(self.task.training), 0, states)
            torch.save(states, file)
        self.checkpoints: list[dict[str, Tensor]] = torch.load(file)
        self.net = self.task.net()
        self.net.load_state_dict(self.checkpoints[-1])
        self.size = sum(p.numel() for p in self.net.parameters())
        self.train_fn = partial(trained, name)

    @property
    def dim(self) -> int:
        """What is kept of a gradient by projections."""
        return min(_DIM, self.size)

    def objective(self) -> ihvp.Objective:
        """The loss of the trained network over the training data."""
        return ihvp.Objective(loss, self.net, self.split.training, predict=predict)

    def layers(self) -> list[str]:
        """The names of the modules that have parameters."""
        return [name for name, module in self.net.named_modules() if module._parameters]
