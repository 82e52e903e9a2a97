"""Scores by token of language models, maskers and taggers, beside a gradient for the loss of each token."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.func import functional_call, jvp
from torch.nn import functional

import ihvp
from ihvp.errors import InvalidOption, LossNotAdditive, MissingCapability, NothingToDraw

pytestmark = pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
WORDS, WIDTH, DAMPING = 7, 4, 0.1
NONE = -100  # the label of places that the loss leaves out


class Reader(nn.Module):
    """An embedding, one block that looks at other places, and a head for each place."""

    def __init__(self, block, outputs=WORDS):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.block, self.head = block, nn.Linear(WIDTH, outputs)

    def forward(self, tokens):
        h = self.embed(tokens)
        return self.head(h + self.block(h, tokens == 0))


class Attention(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.causal = causal
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, h, empty):
        q, k, v = self.project(h).chunk(3, dim=-1)
        seen = ~empty[:, None, :] | torch.eye(h.shape[1], dtype=torch.bool)
        if self.causal:
            seen = seen.tril()
        return (q @ k.mT / WIDTH**0.5).masked_fill(~seen, -torch.inf).softmax(-1) @ v


class Recurrent(nn.GRU):
    def __init__(self):
        super().__init__(WIDTH, WIDTH, batch_first=True)

    def forward(self, h, empty):
        return super().forward(h)[0]


def predict(model, batch):
    return model(batch["tokens"])


def loss(outputs, batch):
    return functional.cross_entropy(outputs.mT, batch["labels"], ignore_index=NONE)


def summed(outputs, batch):
    return functional.cross_entropy(outputs.mT, batch["labels"], ignore_index=NONE, reduction="sum")


def labelled(batch):
    return (batch["labels"] != NONE).sum(1)


def texts(lengths, longest, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, WORDS, (len(lengths), longest), generator=generator)
    return tokens * (torch.arange(longest) < torch.tensor(lengths)[:, None])


def next_words(lengths, longest, prompts, seed=0):
    """Texts whose prompts, and whose padding, are not to be predicted."""
    tokens = texts(lengths, longest, seed)
    labels = functional.pad(tokens[:, 1:], (0, 1))
    left_out = (labels == 0) | (torch.arange(longest) < torch.tensor(prompts)[:, None] - 1)
    return {"tokens": tokens, "labels": labels.masked_fill(left_out, NONE)}


def hidden_words(lengths, longest, seed=0):
    """Texts some of whose words are replaced by the last one of all, and are to be told."""
    tokens = texts(lengths, longest, seed)
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.rand(tokens.shape, generator=generator) < 0.4) & (tokens > 0)
    return {
        "tokens": tokens.masked_fill(hidden, WORDS - 1),
        "labels": tokens.masked_fill(~hidden, NONE),
    }


def tags(lengths, longest, seed=0):
    tokens = texts(lengths, longest, seed)
    return {"tokens": tokens, "labels": (tokens % 3).masked_fill(tokens == 0, NONE)}


def joined(batches):
    """One batch of all texts, filled up to the longest."""
    longest = max(batch["tokens"].shape[1] for batch in batches)
    fill = {"tokens": 0, "labels": NONE}
    return {
        key: torch.cat(
            [functional.pad(b[key], (0, longest - b[key].shape[1]), value=fill[key]) for b in batches]
        )
        for key in fill
    }


# The model, its training batches, and test texts; some texts have nothing to predict.
KINDS = {
    "causal attention, ragged batches": (
        lambda: Reader(Attention(causal=True)),
        [next_words([5, 3, 2], 5, [2, 1, 2]), next_words([7, 4], 8, [3, 2], 1)],
        next_words([6, 4], 6, [1, 2], 2),
    ),
    "recurrent": (
        lambda: Reader(Recurrent()),
        [next_words([5, 3, 2, 4], 6, [2, 1, 2, 1])],
        next_words([5, 2], 6, [1, 1], 2),
    ),
    "masked": (
        lambda: Reader(Attention(causal=False)),
        [hidden_words([5, 6, 1], 6), hidden_words([3, 4], 4, 1)],
        hidden_words([5, 3], 5, 2),
    ),
    "tagger": (
        lambda: Reader(Attention(causal=False), 3),
        [tags([2, 6], 6), tags([3], 3, 1)],
        tags([5, 3], 5, 2),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request):
    make, batches, test = KINDS[request.param]
    torch.manual_seed(0)
    return make().double(), batches, test


def objective(model, data, **options):
    return ihvp.Objective(loss, model, data, predict=predict, **{"weights": labelled, **options})


def influence(objective, **options):
    curvature = ihvp.GaussNewton(objective)
    return ihvp.Influence(objective, DAMPING, ihvp.Direct(), curvature=curvature, **options)


def flat_gradient(model, value):
    parts = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts]).numpy()


def inverse_products(of, test_loss=loss, test=None):
    """``(H + λI)⁻¹ ∇L`` by dense algebra."""
    model, matrix = of.objective.params, np.asarray(ihvp.GaussNewton(of.objective).to_dense())
    each = [{key: array[j : j + 1] for key, array in test.items()} for j in range(len(test["tokens"]))]
    slopes = [flat_gradient(model, test_loss(predict(model, one), one)) for one in each]
    return np.linalg.solve(matrix + DAMPING * np.eye(len(matrix)), np.stack(slopes, axis=1)).T


def by_gradients(model, batches, x):
    """``∇ℓ_it · x_j / W`` of each token's own loss ℓ_it, where W is the number of labels in all."""
    weight = sum(int(labelled(batch).sum()) for batch in batches)
    longest = max(batch["tokens"].shape[1] for batch in batches)
    examples = []
    for batch in batches:
        for i in range(len(batch["tokens"])):
            parts = np.zeros((len(x), longest))
            for t in torch.where(batch["labels"][i] != NONE)[0].tolist():
                alone = {key: array[i : i + 1] for key, array in batch.items()}
                alone["labels"] = torch.full_like(alone["labels"], NONE)
                alone["labels"][0, t] = batch["labels"][i, t]
                parts[:, t] = x @ flat_gradient(model, summed(predict(model, alone), alone)) / weight
            examples.append(parts)
    return np.stack(examples, axis=1)


def test_scores_by_token_are_those_of_each_tokens_loss(kind):
    model, batches, test = kind
    before = copy.deepcopy(model.state_dict())
    of = influence(objective(model, batches))
    found, scores = of.scores_by("token", test), of.scores(test)
    assert found.axes == ("test", "train", "token")
    expected = by_gradients(model, batches, inverse_products(of, test=test))
    assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    assert_allclose(np.asarray(found).sum(axis=2), scores, rtol=0, atol=1e-10 * np.abs(scores).max())
    assert found.residual == scores.residual
    # What the loss leaves out has no part, not even rounding, and a text of nothing else none at all.
    left_out = joined(batches)["labels"].numpy() == NONE
    assert not np.asarray(found)[:, left_out].any()
    assert np.asarray(found)[:, ~left_out].all()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_loss_with_weights_is_the_mean_over_the_tokens_of_all_data(kind):
    model, batches, _ = kind
    o = objective(model, batches)
    count = sum(int(labelled(batch).sum()) for batch in batches)
    total = sum(summed(predict(model, batch), batch) for batch in batches)
    assert_allclose(o.value(), (total / count).item(), rtol=1e-12)
    assert_allclose(o.gradient(), flat_gradient(model, total / count), rtol=1e-10, atol=1e-14)


def test_padding_and_batches_make_no_difference(kind):
    model, batches, test = kind
    expected = influence(objective(model, batches)).scores_by("token", test)
    of = influence(objective(model, joined(batches), batch_size=2))
    assert_allclose(of.scores_by("token", test), expected, rtol=1e-9, atol=1e-14)


def test_a_text_without_labels_in_a_batch_of_its_own_has_zeros():
    model, batches, test = Reader(Recurrent()).double(), [next_words([4, 3], 4, [1, 1])], texts([3, 4], 4)
    test = {"tokens": test, "labels": tags([3, 4], 4)["labels"]}
    empty = next_words([3, 2], 3, [3, 2])
    assert not labelled(empty).any()
    found = influence(objective(model, [*batches, empty])).scores_by("token", test)
    assert not np.asarray(found)[:, 2:].any()
    expected = influence(objective(model, batches)).scores_by("token", test)
    # It counts in N, by which neither score is divided in the end: W is the same.
    assert_allclose(np.asarray(found)[:, :2], expected, rtol=1e-9, atol=1e-14)


def test_other_data_other_losses_and_kept_products():
    make, batches, test = KINDS["tagger"]
    torch.manual_seed(0)
    model = make().double()
    of = influence(objective(model, batches))
    new = tags([4, 2], 7, 5)
    found = of.scores_by("token", test, new, summed)
    x = inverse_products(of, summed, test)
    share = int(labelled(new).sum()) / sum(int(labelled(batch).sum()) for batch in batches)
    expected = by_gradients(model, [new], x) * share
    assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    products = of.inverse_products(test, summed)
    assert_array_equal(of.scores_by("token", products, new), found)

    def half(outputs, batch):
        return loss(outputs, batch) / 2

    removed = influence(objective(model, batches), train_loss=half).scores_by("token", test, new, summed)
    assert_allclose(removed, expected / 2, rtol=0, atol=1e-8 * np.abs(expected).max())


def test_many_test_points_and_some_parameters(monkeypatch):
    """Vectors go forward in parts; and with ``only`` the others have no part."""
    make, batches, _ = KINDS["tagger"]
    model, test = make().double(), tags([3] * 5, 4, 3)
    of = influence(objective(model, batches, only="head"))
    whole = of.scores_by("token", test)
    assert_allclose(np.asarray(whole).sum(axis=2), of.scores(test), rtol=1e-9, atol=1e-14)
    monkeypatch.setattr("ihvp.influence.parts.NUMBERS", 80)
    assert_allclose(of.scores_by("token", test), whole, rtol=1e-12, atol=1e-16)


class Spans(nn.Module):
    """Where an answer begins and where it ends: two outputs that have places, and numbers beside them."""

    def __init__(self):
        super().__init__()
        self.reader = Reader(Attention(causal=False), 2)

    def forward(self, tokens):
        start, end = self.reader(tokens).masked_fill((tokens == 0)[..., None], -1e4).unbind(-1)
        return {"start": start, "count": (tokens > 0).sum(1), "end": end}


def spans(outputs, batch):
    return sum(functional.cross_entropy(outputs[key], batch[key]) for key in ("start", "end"))


def test_all_outputs_count():
    torch.manual_seed(0)
    model = Spans().double()
    data = {
        "tokens": texts([4, 3, 5], 5),
        "start": torch.tensor([1, 0, 2]),
        "end": torch.tensor([3, 2, 2]),
    }
    of = influence(ihvp.Objective(spans, model, data, predict=predict))
    found = np.asarray(of.scores_by("token", data))
    x = torch.as_tensor(of.inverse_products(data).vectors)
    point = {name: p.detach() for name, p in model.named_parameters()}
    outputs = predict(model, data)
    slopes = torch.autograd.grad(spans(outputs, data), [outputs["start"], outputs["end"]])

    def run(params):
        outputs = functional_call(model, params, (data["tokens"],))
        return outputs["start"], outputs["end"]

    for row, vector in zip(found, x, strict=True):
        tangents = vector.split([p.numel() for p in point.values()])
        tangents = {name: t.view_as(point[name]) for name, t in zip(point, tangents, strict=True)}
        _, pushed = jvp(run, (point,), (tangents,))
        expected = sum(part * slope for part, slope in zip(pushed, slopes, strict=True))
        assert_allclose(row, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("batches", [2, 1], ids=["a list", "in memory"])
def test_a_mean_over_the_tokens_of_a_batch_is_refused_and_told_of_weights(batches):
    make, data, test = KINDS["tagger"]
    model, data = make().double(), data if batches == 2 else joined(data)
    of = ihvp.Influence(objective(model, data, weights=None), DAMPING)
    for call in (of.scores, lambda test: of.scores_by("token", test)):
        with pytest.raises(
            LossNotAdditive, match=r'weights=lambda batch: \(batch\["labels"\] != -100\)\.sum\(1\)'
        ):
            call(test)


def test_what_has_no_tokens_is_refused_by_name():
    make, batches, test = KINDS["tagger"]
    model, data = make().double(), joined(batches)

    def of_model(model, batch):
        return loss(predict(model, batch), batch)

    of = ihvp.Influence(ihvp.Objective(of_model, model, data, weights=labelled), DAMPING)
    with pytest.raises(InvalidOption, match=r"predict is None.*Objective\(loss, params, data, predict"):
        of.scores_by("token", test)

    def first(outputs, batch):
        return (outputs[0] ** 2).mean()

    for outputs, shapes in (
        (lambda model, batch: [predict(model, batch)[:, 0, 0]], r"shape \(3,\)"),
        (
            lambda model, batch: [predict(model, batch), predict(model, batch)[:, 0]],
            r"\(3, 6, 3\) and \(3, 3\)",
        ),
    ):
        of = ihvp.Influence(ihvp.Objective(first, model, data, predict=outputs), 1.0)
        with pytest.raises(InvalidOption, match=f"predict is .*the tokens along the second.*{shapes}"):
            of.scores_by("token", test)
    with pytest.raises(InvalidOption, match=r"by is 'tokens'; expected .*'token'"):
        influence(objective(model, data)).scores_by("tokens", test)
    of = ihvp.Influence(objective(model, data, backend="numdiff"), DAMPING, ihvp.CG())
    with pytest.raises(MissingCapability, match="does not implement 'layers'"):
        of.scores_by("token", test)


def test_what_scores_by_token_are_good_for():
    values = np.arange(12.0).reshape(2, 3, 2)
    scores = ihvp.influence.Scores(values, ("test", "train", "token"), 0.0)
    frame = scores.to_pandas()
    assert frame.loc[(1, 2), 0] == values[1, 2, 0]
    assert (frame.index.names, frame.columns.name, frame.shape) == (["test", "train"], "token", (6, 2))
    assert_array_equal(scores.most_helpful(1)[..., 0], np.ones((2, 3)))
    assert repr(scores) == "Scores(test: 2, train: 3, token: 2; float64, residual 0.0e+00)"
    with pytest.raises(InvalidOption, match=r"take Influence\.top_k"):
        scores.top_k(1)
    for draw in (scores.plot, lambda: ihvp.plot.influence_panels(scores, np.zeros((3, 4, 4)))):
        with pytest.raises(NothingToDraw, match=r"shape \(2, 3, 2\); expected scores of whole examples"):
            draw()


@pytest.mark.parametrize("options", [("factored", False), ("sparse", True), ("eigen", True)])
def test_tokens_of_an_index_add_up_to_its_scores(options, tmp_path):
    make, batches, test = KINDS["causal attention, ragged batches"]
    torch.manual_seed(0)
    target = objective(make().double(), batches)
    kind, whitened = options
    curvature = {"curvature": ihvp.EKFAC(target), "damping": DAMPING} if whitened else {}
    index = ihvp.build_index(target, tmp_path, ihvp.Projection(24, kind), "float64", **curvature)
    for data in (None, batches[1]):
        scores, tokens = index.scores(test, data), index.scores_by("token", test, data)
        assert tokens.axes == ("test", "train", "token")
        assert_allclose(np.asarray(tokens).sum(axis=2), scores, rtol=1e-8, atol=1e-12)
    labels = joined([batches[1]])["labels"].numpy()
    assert_array_equal(np.asarray(tokens)[:, labels == NONE], 0)
    with pytest.raises(InvalidOption, match="by"):
        index.scores_by("word", test)
