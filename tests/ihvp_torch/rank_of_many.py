"""What each of three processes answers over its part of the data, beside what one process answers over all.

Run as ``python rank_of_many.py FOLDER``. The processes are forks, so that packages are loaded once.
"""

from __future__ import annotations

import contextlib
import copy
import io
import multiprocessing
import sys
import warnings
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional

import ihvp
import ihvp_numdiff
from ihvp.errors import DataError, InvalidOption, ParameterError, ProcessesDiffer, ProcessFailed

torch.manual_seed(0)
X, Y = torch.randn(20, 4, dtype=torch.float64), torch.randint(3, (20,))
NET = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
TEST = X[:3] + 0.1, Y[:3]
V = np.random.default_rng(0).standard_normal((43, 2))
PARTS = {"uneven": (0, 3, 12, 20), "one is empty": (0, 7, 7, 20)}


def predict(net, batch):
    return net(batch[0])


def loss(outputs, batch):
    return functional.cross_entropy(outputs, batch[1]) + 0.01 * (outputs**2).mean()


def weighted(outputs, batch):
    each = functional.cross_entropy(outputs, batch[1], reduction="none")
    return (each * batch[2]).sum() / batch[2].sum()


def removed(group, net):
    """In the place of a training: parameters that tell which examples were removed."""
    with torch.no_grad():
        net[0].bias += 1e-3 * torch.as_tensor(group).double().sum()
    return net


def objective(data, batch_size=None):
    return ihvp.Objective(loss, NET, data, batch_size, predict=predict)


def answers(o, whole):
    yield "value", o.value()
    yield "gradient", o.gradient()
    for kind in (ihvp.Hessian, ihvp.GaussNewton, ihvp.OPG):
        yield f"product with {kind.__name__}", kind(o) @ V
    yield "eigsh", ihvp.eigsh(ihvp.Hessian(o), k=3, tol=1e-11).values
    yield "eigsh of OPG", ihvp.eigsh(ihvp.OPG(o), k=3, tol=1e-11).values
    yield "trace", ihvp.trace(ihvp.GaussNewton(o), seed=0).value
    for solver in (ihvp.CG(rtol=1e-11), ihvp.MINRES(rtol=1e-11), ihvp.Direct(), "auto"):
        rtol = 1e-11 if solver != "auto" else None
        solver = solver if rtol else ihvp.solvers.Auto(rtol=1e-11)
        yield f"solve by {solver}", ihvp.solve(ihvp.GaussNewton(o), V, damping=0.1, solver=solver).x
    for chosen in (
        {"solver": ihvp.Direct(), "curvature": ihvp.GaussNewton(o), "damping": 0.1},
        {"solver": None, "curvature": ihvp.EKFAC(o) if whole else None, "damping": 0.1},
    ):
        if chosen["curvature"] is None:
            continue
        name, influence = type(chosen["curvature"]).__name__, ihvp.Influence(o, **chosen)
        yield f"{name} scores", influence.scores(TEST)
        yield f"{name} scores of others", influence.scores(TEST, (X[4:9], Y[4:9]))
        for part, scores in influence.scores_by("layer", TEST).items():
            yield f"{name} scores by {part}", scores
        yield f"{name} scores by class", influence.scores_by("token", TEST)
        for which, k in ("both", 5), ("helpful", 1), ("harmful", 20):
            top = influence.top_k(TEST, k, which=which)
            yield f"{name} top {k} {which} scores", top.scores
            yield f"{name} top {k} {which}", top.indices
        yield f"{name} self-influence", influence.self_influence()
        yield f"{name} self-influence of others", influence.self_influence((X[4:9], Y[4:9]))
        yield f"{name} group", influence.group([1, 8, 19], TEST)
        yield f"{name} groups", influence.group([[1], [8, 4], [2, 13]], TEST)
        yield f"{name} inverse products", influence.inverse_products(TEST).vectors
        yield f"{name} of inverse products", influence.scores(influence.inverse_products(TEST))
        if name != "EKFAC":
            yield f"{name} second order", influence.group([[1], [8, 4]], TEST, second_order=True)
        if whole:
            yield f"{name} on inputs", influence.on_inputs(TEST)[0]
            yield f"{name} on inputs of others", influence.on_inputs(TEST, (X[4:9], Y[4:9]))[0]
    removals = ihvp.leave_one_out(o, removed, [3, [1, 15]], TEST, damping=1.0, solver=ihvp.Direct())
    yield "leave one out, predicted", removals.predicted
    yield "leave one out, actual", removals.actual


def ridge(w, decay, batch):
    return functional.cross_entropy(batch[0] @ w["w"], batch[1]) + decay * (w["w"] ** 2).sum()


def uncertain_answers(o, mine):
    """Covariances, a posterior, and derivatives through an optimum and a solve."""
    w = {"w": torch.tensor(V[:12, 0].reshape(4, 3)).requires_grad_()}
    convex = ihvp.Objective(lambda w, batch: ridge(w, 0.05, batch), w, mine)
    for kind in "hessian", "sandwich":
        yield f"errors by {kind}", ihvp.standard_errors(ihvp.covariance(convex, kind))["w"]
    outer, solver = (lambda w, decay, batch: ridge(w, 0.0, batch)), ihvp.CG(rtol=1e-12)
    yield "hypergradient", ihvp.hypergradient(outer, ridge, w, 0.05, mine, TEST, solver=solver).gradient
    v = torch.tensor(V[:12, 1])
    (ihvp.differentiable_solve(ihvp.Hessian(convex), v, 0.0, solver, params=w) ** 2).sum().backward()
    yield "derivative of a solve", w["w"].grad
    posterior = ihvp.Laplace(o, prior_precision={"0": 40.0, "2": 30.0})
    yield "evidence", posterior.log_marginal_likelihood().value
    yield "predictive", posterior.predictive(TEST).covariance


def weighted_answers(o):
    yield "weighted gradient", o.gradient()
    influence = ihvp.Influence(o, 0.1, ihvp.Direct(), curvature=ihvp.GaussNewton(o))
    yield "weighted scores", influence.scores(TEST, test_loss=loss)
    # The examples that weigh nothing are tied.
    yield "weighted top", influence.top_k(TEST, 20, test_loss=loss).indices
    yield "weighted self-influence", influence.self_influence()
    yield "weighted group", influence.group([[0, 1], [8]], TEST, loss, second_order=True)


def outputs(logits, batch):
    return logits.gather(1, batch[1][:, None]).mean()


def attributions(o, folder, whole, empty):
    """Of an index, and of methods, on some examples of each rank and on others."""
    methods = {}
    if whole:
        methods["LoGra"] = ihvp.LoGra(o, f"{folder}/LoGra", 16, 0.1, dtype="float64")
        methods["TRAK"] = ihvp.TRAK(
            o, outputs, f"{folder}/TRAK", projection=ihvp.Projection(8), damping=1.0, dtype="float64"
        )
    if empty:
        methods["sparse"] = ihvp.build_index(o, f"{folder}/sparse", ihvp.Projection(8), "float64")
        methods["cosine"] = ihvp.GradientCosine(o)
        methods["TracIn"] = ihvp.TracIn(o, [NET, NET.state_dict()], [0.1, 0.2])
        methods["RelatIF"] = ihvp.RelatIF(o, 0.1, ihvp.Direct(), curvature=ihvp.GaussNewton(o))
    for name, method in methods.items():
        yield f"{name}, scores", method.scores(TEST)
        yield f"{name}, scores of others", method.scores(TEST, (X[4:9], Y[4:9]))
        yield f"{name}, top", method.top_k(TEST, 5).indices
        if hasattr(method, "self_influence"):
            yield f"{name}, self-influence", method.self_influence()


def all_answers(part, folder, whole=True, empty=True):
    """With the data in one batch, and in batches of a list."""
    found = dict(answers(objective((X[part], Y[part])), whole))
    found |= dict(uncertain_answers(objective((X[part], Y[part])), (X[part], Y[part])))
    found |= dict(attributions(objective((X[part], Y[part])), folder, whole, empty))
    batches = [(x, y) for x, y in zip(X[part].split(2), Y[part].split(2), strict=True)]
    listed = ihvp.Influence(
        objective(batches), 0.1, ihvp.Direct(), curvature=ihvp.GaussNewton(objective(batches))
    )
    found["listed top"] = listed.top_k(TEST, 5).indices
    found["listed self-influence"] = listed.self_influence()
    data = X[part], Y[part], (torch.arange(20) % 4).double()[part]
    o = ihvp.Objective(weighted, NET, data, predict=predict, weights=lambda b: b[2])
    return found | dict(weighted_answers(o))


def refused(error, call):
    try:
        call()
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__}")


def refusals(rank, mine):
    """Each is an error in all processes, after which they go on together."""
    other = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    other.load_state_dict(NET.state_dict())
    with torch.no_grad():
        other[0].bias[0] += 1e-12 * (rank == 2)
    told = refused(ProcessesDiffer, ihvp.Objective(loss, other, mine, predict=predict).gradient)
    assert "parameters: rank 2 from" in told, told
    halved = lambda outputs, batch: loss(outputs, batch) / 2  # noqa: E731
    told = refused(
        ProcessesDiffer, ihvp.Objective(halved if rank else loss, NET, mine, predict=predict).value
    )
    assert "the loss: rank 1, 2 from" in told, told
    o = objective(mine)
    for name, options in {
        "damping": {"damping": 0.1 * (1 + rank)},
        "solver": {"damping": 0.1, "solver": ihvp.CG(rtol=1e-3 * (1 + rank))},
    }.items():
        assert name in refused(
            ProcessesDiffer, lambda o=o, options=options: ihvp.Influence(o, **options).scores(TEST)
        )
    influence = ihvp.Influence(o, 0.1, ihvp.CG(), curvature=ihvp.GaussNewton(o))
    assert "arguments" in refused(ProcessesDiffer, lambda: influence.top_k(TEST, 1 + rank))
    own = X[rank : rank + 3], Y[:3]
    assert "test data" in refused(ProcessesDiffer, lambda: influence.scores(own))
    assert "to score" in refused(ProcessesDiffer, lambda: influence.scores(TEST, own))
    assert "at most 3" in refused(InvalidOption, lambda: ihvp.Hessian(o).sampler(4))
    empty = objective((X[:0], Y[:0]) if rank == 1 else mine)
    told = refused(DataError, lambda: ihvp.Influence(empty, 1.0, ihvp.CG()).on_inputs(TEST))
    assert "rank 1 has no example" in told, told
    assert told == refused(DataError, lambda: ihvp.KFAC(empty))
    none = objective((X[:0], Y[:0]))
    assert "No process" in refused(DataError, none.gradient)
    sampler = torch.utils.data.DistributedSampler(torch.utils.data.TensorDataset(X, Y))
    loader = torch.utils.data.DataLoader(sampler.dataset, sampler=sampler)
    assert "repeats 1 of 20" in refused(DataError, lambda: objective(loader))


def sharded(mine, expected):
    """Parameters of which each process has a part: refused, and right by the two ways around."""
    make = partial(copy.deepcopy, NET)
    mesh = init_device_mesh("cpu", (3,))
    by_data, unsharded = make(), make()
    for net in by_data, unsharded:
        for part in net[0], net[2], net:
            fully_shard(part, mesh=mesh)
    for part in unsharded.modules():
        getattr(part, "unshard", int)()
    assert not isinstance(unsharded[0].weight, DTensor)
    by_tensor = parallelize_module(make(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    first = FullyShardedDataParallel(make(), use_orig_params=True, device_id=torch.device("cpu"))
    for params in by_data, unsharded, by_tensor, first, dict(by_data.named_parameters()):
        for backend in "torch", "numdiff":
            made = partial(ihvp.Objective, loss, params, mine, predict=predict, backend=backend)
            assert "sharded over processes" in refused(ParameterError, made)
    for net in by_data, by_tensor:
        plain = make()
        nn.init.zeros_(plain[0].weight)
        plain.load_state_dict(get_model_state_dict(net, options=StateDictOptions(full_state_dict=True)))
        found = ihvp.Hessian(ihvp.Objective(loss, plain, mine, predict=predict)) @ V
        np.testing.assert_allclose(found, expected["product with Hessian"], rtol=1e-8, atol=1e-12)

    parameters = list(by_data.parameters())

    def read():
        return [p.detach().full_tensor().numpy() for p in parameters]

    def write(arrays):
        with torch.no_grad():
            for p, array in zip(parameters, arrays, strict=True):
                p.copy_(distribute_tensor(torch.as_tensor(array), p.device_mesh, p.placements))

    def grad(weights, batch):
        by_data.zero_grad()
        loss(predict(by_data, batch), batch).backward()
        return [p.grad.full_tensor().numpy() for p in parameters]

    before = read()
    o = ihvp.Objective(params=ihvp_numdiff.InPlaceWeights(read, write), grad=grad, data=(X, Y))
    found, scale = ihvp.Hessian(o) @ V, np.abs(expected["product with Hessian"]).max()
    np.testing.assert_allclose(found, expected["product with Hessian"], rtol=0, atol=1e-8 * scale)
    assert all(np.array_equal(a, b) for a, b in zip(before, read(), strict=True))


def shows_progress(rank, o):
    """Of all processes the first alone does."""
    H, influence = ihvp.GaussNewton(o), ihvp.Influence(o, 0.1, ihvp.Direct(), curvature=ihvp.GaussNewton(o))
    for call in (
        lambda: ihvp.solve(H, V, damping=0.1, progress=True),
        lambda: ihvp.eigsh(H, k=1, progress=True),
        lambda: influence.scores(TEST, progress=True),
        lambda: influence.self_influence(progress=True),
    ):
        with contextlib.redirect_stderr(io.StringIO()) as shown:
            call()
        assert bool(shown.getvalue()) == (rank == 0), shown.getvalue()


def work(rank, folder, expected):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3
    )
    for name, ends in PARTS.items():
        part = slice(*ends[rank : rank + 2])
        whole = name == "uneven"
        for what, found in all_answers(part, f"{folder}/{name}", whole, not whole).items():
            where, found, right = f"{what}, {name}", np.asarray(found), np.asarray(expected[what])
            if found.dtype.kind == "i":
                np.testing.assert_array_equal(found, right, where)
            else:
                scale = np.abs(right).max()
                np.testing.assert_allclose(found, right, rtol=1e-8, atol=1e-8 * scale, err_msg=where)
    mine = X[slice(*PARTS["uneven"][rank : rank + 2])], Y[slice(*PARTS["uneven"][rank : rank + 2])]
    wrapped = nn.parallel.DistributedDataParallel(NET)
    found = ihvp.Objective(loss, wrapped, mine, predict=predict).gradient()
    np.testing.assert_allclose(found, expected["gradient"], rtol=1e-10, atol=1e-14)
    H, sent = ihvp.Hessian(objective(mine)), []
    H @ V
    inner, processes = torch.distributed.all_reduce, torch.distributed
    processes.all_reduce = lambda total, **options: sent.append(total.numel()) or inner(total, **options)
    H @ V
    processes.all_reduce = inner
    assert sent == [V.size], sent
    file = f"{folder}/factors.npz"
    once, again = (ihvp.KFAC(objective(mine), out=file) for _ in range(2))
    torch.distributed.barrier()
    np.testing.assert_array_equal(once @ V, ihvp.KFAC.load(file, objective(mine)) @ V)
    assert again.passes == 0 < once.passes, (once.passes, again.passes)
    sharded(mine, expected)
    shows_progress(rank, objective(mine))
    refusals(rank, mine)
    objective_of_then = objective(mine)
    torch.distributed.destroy_process_group()
    assert "others than" in refused(ProcessFailed, objective_of_then.gradient)


def main(folder):
    warnings.simplefilter("ignore", ihvp.influence.NotAtOptimum)
    torch.set_num_threads(1)
    expected = all_answers(slice(None), f"{folder}/alone")
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=work, args=(rank, folder, expected)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    sys.exit(any(rank.exitcode for rank in ranks))


if __name__ == "__main__":
    main(sys.argv[1])
