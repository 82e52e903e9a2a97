"""Parameters and data over meshes: every result is that of one device, and that of numpy.

Run with the number of this process, how many there are, and the port of the first. All make the same calls.
"""

from __future__ import annotations

import re
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ihvp
from ihvp.algebra import to_numpy
from ihvp.errors import InvalidOption, ParameterError
from ihvp_jax import _derivatives
from ihvp_jax._static import Static, hold_constants

EXAMPLES, FEATURES, CLASSES, DAMPING = 32, 8, 4, 0.1


def logits(params, batch):
    return batch["x"] @ params["w"] + params["b"]


def cross_entropy(outputs, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch["y"][:, None], 1).mean()


def loss(params, batch):
    return cross_entropy(logits(params, batch), batch)


def problem():
    rng = np.random.default_rng(0)
    params = {"b": rng.standard_normal(CLASSES), "w": rng.standard_normal((FEATURES, CLASSES))}
    data = {"x": rng.standard_normal((EXAMPLES, FEATURES)), "y": np.arange(EXAMPLES) % CLASSES}
    return params, data, rng.standard_normal((CLASSES + FEATURES * CLASSES, 3))


def by_numpy(params, data):
    """The value, gradients and Hessian of softmax regression."""
    x = np.hstack([np.ones((EXAMPLES, 1)), data["x"]])  # the bias comes first in a flat vector
    p = np.exp(logits(params, data))
    p /= p.sum(axis=1, keepdims=True)
    rows = np.einsum("ni,nc->nic", x, p - np.eye(CLASSES)[data["y"]]).reshape(EXAMPLES, -1)
    outputs = np.einsum("nc,cd->ncd", p, np.eye(CLASSES)) - p[:, :, None] * p[:, None, :]
    hessian = np.einsum("ni,nj,ncd->icjd", x, x, outputs).reshape(rows.shape[1], -1) / EXAMPLES
    value = -np.log(p[np.arange(EXAMPLES), data["y"]]).mean()
    return {"value": value, "gradient": rows.mean(0), "rows": rows, "hessian": hessian}


def products(objective, v, test):
    return {"gradient": objective.gradient(), "product": ihvp.Hessian(objective) @ v[:, 0]}


def first_results(objective, v, test):
    hessian = ihvp.Hessian(objective)
    return {
        "value": objective.value(),
        "gradient": objective.gradient(),
        "rows": objective.per_example_gradients(),
        "product": hessian @ v[:, 0],
        "CG": ihvp.solve(hessian, v[:, 0], damping=DAMPING, solver=ihvp.CG(rtol=1e-11)).x,
    }


def more_results(objective, v, test):
    hessian, cg = ihvp.Hessian(objective), ihvp.CG(rtol=1e-11)
    pairs = ihvp.eigsh(hessian, k=3, tol=1e-11)
    return {
        "hessian": hessian.to_dense(),
        "block CG": ihvp.solve(hessian, v, damping=DAMPING, solver=cg).x,
        "eigenvalues": pairs.values,
        "projector": pairs.vectors @ pairs.vectors.T,
        "scores": ihvp.Influence(objective, damping=DAMPING, solver=cg).scores(test),
    }


def scores(objective, v, test):
    cg = ihvp.CG(rtol=1e-11)
    return {"scores": ihvp.Influence(objective, damping=DAMPING, solver=cg).scores(test)}


def other_results(objective, v, test):
    hessian = ihvp.Hessian(objective)
    influence = ihvp.Influence(objective, damping=DAMPING, solver=ihvp.Direct())
    top = influence.top_k(test, 4)
    results = {
        "Gauss–Newton": ihvp.GaussNewton(objective) @ v,
        "OPG": ihvp.OPG(objective) @ v,
        "trace": ihvp.trace(hessian, num_samples=8).value,
        "top scores": top.scores,
        "top indices": top.indices,
        "self-influence": influence.self_influence(),
        "group": influence.group([[0, 1], [5]], test),
        "on inputs": influence.on_inputs(test)["x"],
        "EK-FAC": ihvp.solve(ihvp.EKFAC(objective, fisher="empirical"), v, damping=DAMPING).x,
    }
    solvers = (
        ihvp.MINRES(rtol=1e-11),
        ihvp.Direct(),
        ihvp.LiSSA(rtol=1e-11, recursion_depth=5000),
        ihvp.Auto(),
    )
    for solver in solvers:
        x = ihvp.solve(hessian, v[:, 0], damping=DAMPING, solver=solver).x
        results[type(solver).__name__] = x
    batches = ihvp.LiSSA(batch_size=5, recursion_depth=50, rtol=None)
    results["random batches"] = ihvp.solve(hessian, v[:, 0], damping=DAMPING, solver=batches).x
    return results


def require_near(found, expected, where):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        ours, theirs = to_numpy(found[name]), to_numpy(value)
        assert ours.shape == theirs.shape, (where, name, ours.shape, theirs.shape)
        error = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
        assert error <= (0 if ours.dtype.kind == "i" else 1e-8), (where, name, error)


def over(mesh, tree, *spec):
    """Arrays over a mesh, divided along the axes of ``spec``; each process gives what its devices hold."""

    def put(array):
        sharding = NamedSharding(mesh, PartitionSpec(*spec[: array.ndim]))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)


def settings_of_one_process(params, data):
    devices = np.array(jax.devices()).reshape(2, 2)
    square = Mesh(devices, ("data", "model"))
    kinds = {"axis_types": (jax.sharding.AxisType.Explicit,) * 2} if hasattr(jax.sharding, "AxisType") else {}
    explicit = Mesh(devices, ("data", "model"), **kinds)
    columns = {"b": over(explicit, params["b"], "model"), "w": over(explicit, params["w"], None, "model")}
    yield "columns", columns, over(explicit, data, "data"), (first_results, more_results, other_results)
    yield (
        "replicated",
        over(square, params),
        over(square, data, ("data", "model")),
        (first_results,),
    )
    mixed = {"b": jnp.asarray(params["b"]), "w": over(square, params["w"], "data")}
    parts = [{name: array[part] for name, array in data.items()} for part in (slice(13), slice(13, None))]
    yield "mixed", mixed, [over(square, parts[0]), parts[1]], (products,)
    yield "on one device", jax.tree.map(jnp.asarray, params), over(square, data, "data"), (products,)


def settings_of_processes(params, data):
    line = Mesh(np.array(jax.devices()), ("data",))
    yield "divided", over(line, params, "data"), over(line, data, "data"), (first_results, scores)
    yield "on a device of each", jax.tree.map(jnp.asarray, params), over(line, data, "data"), (products,)


def require_vectors_from_anywhere(params, data, v):
    """A vector of one device, or divided in another way; what comes back over a mesh lies as it did."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    objective, v = ihvp.Objective(loss, over(mesh, params), data), v[:, 0]
    hessian, expected = ihvp.Hessian(objective), by_numpy(params, data)["hessian"] @ v
    structure = {"b": v[:CLASSES], "w": v[CLASSES:].reshape(FEATURES, CLASSES)}
    alone = jax.device_put(v, jax.devices()[-1])
    for given in (over(mesh, v, "data"), over(mesh, structure, "model"), alone):
        found = hessian @ given
        require_near({"product": objective.backend.flatten(found)}, {"product": expected}, given)
        places, places_given = ([leaf.sharding for leaf in jax.tree.leaves(tree)] for tree in (found, given))
        assert places == places_given or given is alone


def require_whole_vectors(v):
    """Vectors are whole on each device, also where XLA would leave them divided as the parameters are."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    objective = ihvp.Objective(lambda w, _: jnp.sum(w**4), over(mesh, v[:, 0], "data"))
    product = ihvp.Hessian(objective) @ jnp.asarray(v[:, 1])
    assert objective.gradient().is_fully_replicated
    assert product.is_fully_replicated
    require_near({"product": product}, {"product": 12 * v[:, 0] ** 2 * v[:, 1]}, "quartic")


def require_refusals(params, data):
    one, other = jax.devices()[:2]
    with pytest.raises(ParameterError, match="on 2 devices"):
        ihvp.Objective(loss, {"b": jax.device_put(params["b"], one), "w": jax.device_put(params["w"], other)})
    if hasattr(jax, "set_mesh"):
        with (
            jax.set_mesh(jax.make_mesh((4,), ("data",))),
            pytest.raises(ParameterError, match="explicit axes"),
        ):
            ihvp.Objective(loss, jax.tree.map(jnp.asarray, params), data)


def require_one_sum(params, data, v):
    """With parameters on all devices a product communicates its own entries, and nothing more."""
    line = Mesh(np.array(jax.devices()), ("data",))
    params, batch, v = over(line, params), hold_constants(over(line, data, "data")), over(line, v[:, 0])
    linear = _derivatives.linearize(Static(loss), params, batch)
    text = _derivatives.apply.lower(linear, params, v).compile().as_text()
    moving = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    results = re.findall(rf"= (.*?) (?:{moving})(?:-start)?\(", text)
    shapes = [shape for result in results for shape in re.findall(r"\[([\d,]*)\]", result)]
    numbers = sum(int(np.prod([int(size) for size in shape.split(",") if size])) for shape in shapes)
    assert v.size <= numbers <= 1.05 * v.size, (numbers, results)


def main(number, count, port):
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", count, number)
    jax.config.update("jax_enable_x64", True)
    params, data, v = problem()
    test = {name: array[:3] for name, array in data.items()}

    def results(params, data, of):
        return of(ihvp.Objective(cross_entropy, params, data, predict=logits), v, test)

    expected = {}
    for where, *setting, kinds in (settings_of_one_process if count == 1 else settings_of_processes)(
        params, data
    ):
        before = jax.tree.leaves(setting[0])
        for of in kinds:
            if of not in expected:
                expected[of] = results(*(jax.tree.map(jnp.asarray, tree) for tree in (params, data)), of)
            found = results(*setting, of)
            require_near(found, expected[of], where)
        assert all(a is b for a, b in zip(before, jax.tree.leaves(setting[0]), strict=True))
    closed, one_device = by_numpy(params, data), expected[first_results] | expected.get(more_results, {})
    closed = {name: value for name, value in closed.items() if name in one_device}
    require_near({name: one_device[name] for name in closed}, closed, "numpy")
    if count == 1:
        require_one_sum(params, data, v)
        require_vectors_from_anywhere(params, data, v)
        require_whole_vectors(v)
        require_refusals(params, data)
    else:
        objective = ihvp.Objective(loss, over(Mesh(np.array(jax.devices()), ("data",)), params), data)
        with pytest.raises(InvalidOption, match="divides arrays among"):
            ihvp.Influence(objective).scores(test, out="scores")


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "The parameters are not at an optimum")
    main(*map(int, sys.argv[1:]))
