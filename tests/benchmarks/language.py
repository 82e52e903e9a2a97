"""A causal language model that was taught facts: do the sequences that taught one rank first, at what cost?

The grammar: 2,000 sequences of 64 tokens, drawn from 50 sentences of one template. Each of 40 facts,
"relation subject object", stands in 10 of the sequences, twice, between other sentences; its subject and its
object are in no other fact, because a sequence with the same object would be a cause of the answer too. A
question, of every other fact, is the loss of the object alone, at the end of a sequence that was not trained
on. recall@10 is the part of the ten best scores
that belongs to the sequences that taught the fact, in the mean over the questions.

Each way runs in a process of its own, which loads the trained model. Its peak is what it holds at most beyond
what was resident before it began.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.data import TensorDataset

import ihvp
from ihvp.kronecker.outputs import FisherKind
from tests.benchmarks.kronfluence_task import kronfluence_task
from tests.benchmarks.memory import peak_of, resident
from tests.benchmarks.rows import Case, Row, seconds

SEQUENCES, LENGTH, FACTS, TAUGHT = 2000, 64, 40, 10
_WORDS, _SENTENCES, _RELATIONS = 200, 50, 2
VOCABULARY = 2 + _WORDS + _RELATIONS + 2 * FACTS
_WIDTH, _HEADS, _BLOCKS, _EPOCHS = 208, 4, 2, 3
# Sequences of a step of training, and of a batch after it.
_STEP, _BATCH, _DIM = 10, 50, 4096
# Of the curvature's mean eigenvalue. The smaller one is below what float32 resolves beside the largest.
_DAMPING, _SMALL_DAMPING = 0.1, 0.01

_Scored: TypeAlias = Callable[[], Any]
"""What gives the scores once everything is prepared."""


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(_WIDTH, elementwise_affine=False) for _ in range(2))
        self.attend, self.mix = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.wide, self.narrow = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        parts = self.attend(self.norms[0](h)).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.mix(scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2))
        return h + self.narrow(nn.functional.gelu(self.wide(self.norms[1](h))))


class LanguageModel(nn.Module):
    """Two pre-norm blocks with four heads, whose norms have no parameters: P = 1,173,820."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, _WIDTH), nn.Embedding(LENGTH, _WIDTH)
        self.blocks = nn.Sequential(*(_Block() for _ in range(_BLOCKS)))
        self.norm, self.read = nn.LayerNorm(_WIDTH, elementwise_affine=False), nn.Linear(_WIDTH, VOCABULARY)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self.read(self.norm(self.blocks(self.words(tokens) + self.places(places))))


@dataclass(frozen=True)
class Text:
    """What is trained on, the questions, and what taught the fact of each ``(20, 2000)``."""

    training: tuple[Tensor, Tensor]
    questions: tuple[Tensor, Tensor]
    taught: NDArray[np.bool_]


def text(seed: int = 0) -> Text:
    """Tokens and labels; −100 where nothing is asked."""
    random = np.random.default_rng(seed)
    relations, objects, subjects = np.split(np.arange(2 + _WORDS, VOCABULARY), np.cumsum([_RELATIONS, FACTS]))
    related = np.repeat(relations, FACTS // _RELATIONS)
    facts = np.stack([related, subjects, random.permutation(objects)], axis=1).tolist()
    # Article, adjective, noun, verb, article, noun, stop.
    adjectives, nouns, verbs = np.split(2 + np.arange(_WORDS), [_WORDS // 4, 3 * _WORDS // 4])
    kinds = adjectives, nouns, verbs, nouns
    words = (random.choice(kind, _SENTENCES).tolist() for kind in kinds)
    told = [[0, *parts[:3], 0, parts[3], 1] for parts in zip(*words, strict=True)]

    def sequence(fact: list[int], last: bool = False) -> list[int]:
        sentences = [told[number] for number in random.integers(_SENTENCES, size=LENGTH // 7 + 2)]
        if last:
            return [*chain.from_iterable(sentences)][3 - LENGTH :] + fact
        for place in random.integers(1, 7, 2) if fact else ():
            sentences.insert(place, [*fact, 1])
        # Else places alone would tell which word comes next.
        return [*chain.from_iterable(sentences)][random.integers(7) :][:LENGTH]

    teaches = np.full(SEQUENCES, -1)
    teaches[: FACTS * TAUGHT] = np.repeat(np.arange(FACTS), TAUGHT)
    teaches = random.permutation(teaches)
    tokens = torch.tensor([sequence(facts[number] if number >= 0 else []) for number in teaches])
    asked = torch.tensor([sequence(fact, last=True) for fact in facts])[::2]
    training, questions = ((rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in (tokens, asked))
    questions[1][:, :-1] = -100
    return Text(training, questions, teaches == np.arange(0, FACTS, 2)[:, None])


def trained(data: Text) -> LanguageModel:
    """A model that knows the facts."""
    torch.manual_seed(0)
    net = LanguageModel()
    tokens, labels = data.training
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    steps = _EPOCHS * len(tokens) // _STEP
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(tokens)).split(_STEP):
            optimizer.zero_grad()
            cross_entropy(net(tokens[rows]).flatten(0, 1), labels[rows].flatten()).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return net.eval()


def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The sum over the labels of a sequence, in the mean over sequences."""
    outputs = outputs.flatten(0, 1).to(torch.promote_types(outputs.dtype, torch.float32))
    return cross_entropy(outputs, batch[1].flatten(), reduction="sum") / len(batch[1])


def predict(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The logits."""
    return net(batch[0])  # type: ignore[no-any-return]


class _Task:
    """One way at a time: what is prepared once, and then the scores of all questions."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.net = folder, text(), LanguageModel().eval()
        self.net.load_state_dict(torch.load(folder / "net.pt"))
        self.damping: float | None = None

    def objective(self) -> ihvp.Objective:
        return ihvp.Objective(loss, self.net, self.data.training, predict=predict, batch_size=_BATCH)

    def factors(
        self, objective: ihvp.Objective, part: float = _DAMPING, fisher: FisherKind = "mc"
    ) -> ihvp.EKFAC:
        factors = ihvp.EKFAC(objective, fisher=fisher)
        self.damping = part * float(factors.trace()) / objective.num_params
        return factors

    def ekfac(self, part: float = _DAMPING, fisher: FisherKind = "mc") -> _Scored:
        objective = self.objective()
        factors = self.factors(objective, part, fisher)
        influence = ihvp.Influence(objective, self.damping, curvature=factors)
        return lambda: influence.scores(self.data.questions)

    def float64(self) -> _Scored:
        self.net.double()
        return self.ekfac(_SMALL_DAMPING)

    def empirical(self) -> _Scored:
        return self.ekfac(fisher="empirical")

    def bfloat16(self) -> _Scored:
        self.net.to(torch.bfloat16)
        return self.empirical()

    def rounded(self) -> _Scored:
        self.net.to(torch.bfloat16).float()
        return self.empirical()

    def index(self) -> _Scored:
        objective, out = self.objective(), self.folder / "index"
        factors = self.factors(objective)
        assert self.damping is not None
        index = ihvp.build_index(
            objective, out, ihvp.Projection(_DIM, "sparse"), curvature=factors, damping=self.damping
        )
        return lambda: index.scores(self.data.questions)

    def kronfluence(self) -> _Scored:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments

        task = kronfluence_task()
        training, questions = (TensorDataset(*part) for part in (self.data.training, self.data.questions))
        net, out = prepare_model(self.net, task), str(self.folder / "kronfluence")
        analyzer = Analyzer("language", net, task, cpu=True, disable_tqdm=True, output_dir=out)
        analyzer.fit_all_factors("ekfac", training, _BATCH, factor_args=FactorArguments("ekfac"))
        self.damping = json.loads((self.folder / "EK-FAC.json").read_text())["damping"]

        def scores() -> NDArray[Any]:
            analyzer.compute_pairwise_scores(
                "scores",
                "ekfac",
                questions,
                training,
                per_device_query_batch_size=FACTS,
                per_device_train_batch_size=_BATCH,
                score_args=ScoreArguments(damping_factor=self.damping),
            )
            return analyzer.load_pairwise_scores("scores")["all_modules"].numpy() / SEQUENCES

        return scores


_WAYS: dict[str, Callable[[_Task], _Scored]] = {
    "EK-FAC": _Task.ekfac,
    "kronfluence": _Task.kronfluence,  # after EK-FAC, whose damping it takes
    "EK-FAC, float64": _Task.float64,
    "EK-FAC, empirical": _Task.empirical,
    # Random labels of the factors are others in another precision, and move scores by more than it does.
    "EK-FAC, empirical, bfloat16": _Task.bfloat16,
    "EK-FAC, empirical, float32 with the weights of bfloat16": _Task.rounded,
    "index of EK-FAC": _Task.index,
}


def main(way: str, folder: str) -> None:
    """Run one way in this process, and write what it took and its scores."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task, times, found = _Task(Path(folder)), [time.process_time()], []

    def run() -> None:
        scored = _WAYS[way](task)
        times.append(time.process_time())
        found.append(np.asarray(scored()))
        times.append(time.process_time())

    before = resident()
    peak = peak_of(run) - before
    np.save(Path(folder, f"{way}.npy"), found[0])
    setup, scoring = np.diff(times).tolist()
    told = {"setup": setup, "scoring": scoring, "peak": peak, "damping": task.damping}
    Path(folder, f"{way}.json").write_text(json.dumps(told))


@dataclass(frozen=True)
class _Found:
    """What a way took, and its scores ``(questions, sequences)``."""

    scores: NDArray[Any]
    setup: float
    scoring: float
    peak: int
    damping: float | None

    def recall(self, taught: NDArray[np.bool_]) -> float:
        """The part of the ten best that taught the fact."""
        best = np.argsort(-self.scores, axis=1)[:, :TAUGHT]
        return float(np.take_along_axis(taught, best, axis=1).mean())

    def correlation(self, other: _Found) -> float:
        """Pearson's, over all pairs."""
        return float(np.corrcoef(self.scores.ravel(), other.scores.ravel())[0, 1])

    def __str__(self) -> str:
        took = f"{seconds(self.setup)} and {seconds(self.scoring)}, {self.peak / 2**20:.0f} MiB"
        return took if self.damping is None else f"{took}, λ = {self.damping:.2g}"


def compare(folder: Path, ways: Iterable[str] = _WAYS) -> dict[str, _Found]:
    """Each way in a process of its own, on the model ``net.pt`` of the folder."""
    found = {}
    for way in ways:
        command = [sys.executable, "-m", "tests.benchmarks.language", way, str(folder)]
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
        about = json.loads(Path(folder, f"{way}.json").read_text())
        found[way] = _Found(np.load(Path(folder, f"{way}.npy")), **about)
    return found


def measure(device: str) -> list[Row]:
    """Recall, and seconds and memory, of each way."""
    data = text()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(trained(data).state_dict(), Path(folder, "net.pt"))
        found = compare(Path(folder))
    ours, theirs = found["EK-FAC"], found["kronfluence"]
    rows = []
    for way, one in found.items():
        rows.append(
            Row(
                what=f"{way}: recall@10 of {len(data.taught)} facts; to prepare and to score, and peak",
                ours=f"{one}",
                peer="kronfluence",
                beside=f"recall {theirs.recall(data.taught):.3f}; {theirs}",
                value=one.recall(data.taught),
                **({"low": 0.9, "high": 1.0} if way == "EK-FAC, empirical" else {}),
            )
        )
    pairs = {
        "EK-FAC's scores and kronfluence's": (ours, theirs, None),
        "EK-FAC, empirical: bfloat16's scores and float32's with the same weights": (
            found["EK-FAC, empirical, bfloat16"],
            found["EK-FAC, empirical, float32 with the weights of bfloat16"],
            0.97,
        ),
    }
    for what, (one, other, low) in pairs.items():
        rows.append(
            Row(
                what=f"{what}, correlation",
                ours="",
                peer="Pearson",
                beside="1",
                value=one.correlation(other),
                low=low,
                high=None if low is None else 1.0,
            )
        )
    return rows


CASE = Case("language", "A language model", {"torch": measure})

if __name__ == "__main__":
    main(*sys.argv[1:])
