"""Parameters and data over meshes: every result is that of one device, and that of numpy.

Run with the number of the process, how many there are, and the port of the first. All of them make the same
calls; arrays over the devices of several are made from what each has.
"""

from __future__ import annotations

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.testing import assert_array_equal

import ihvp
from ihvp.algebra import to_numpy

EXAMPLES, FEATURES, CLASSES, DAMPING = 32, 8, 4, 0.1


def logits(params, batch):
    return batch["x"] @ params["w"] + params["b"]


def cross_entropy(outputs, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch["y"][:, None], 1).mean()


def problem():
    rng = np.random.default_rng(0)
    params = {"b": rng.standard_normal(CLASSES), "w": rng.standard_normal((FEATURES, CLASSES))}
    data = {"x": rng.standard_normal((EXAMPLES, FEATURES)), "y": np.arange(EXAMPLES) % CLASSES}
    size = CLASSES + FEATURES * CLASSES
    return params, data, rng.standard_normal((size, 3))


def by_numpy(params, data):
    """The value, gradient and Hessian of softmax regression."""
    x = np.hstack([np.ones((EXAMPLES, 1)), data["x"]])  # the bias comes first in a flat vector
    p = np.exp(data["x"] @ params["w"] + params["b"])
    p /= p.sum(axis=1, keepdims=True)
    rows = np.einsum("ni,nc->nic", x, p - np.eye(CLASSES)[data["y"]]).reshape(EXAMPLES, -1)
    outputs = np.einsum("nc,cd->ncd", p, np.eye(CLASSES)) - p[:, :, None] * p[:, None, :]
    hessian = np.einsum("ni,nj,ncd->icjd", x, x, outputs).reshape(rows.shape[1], -1) / EXAMPLES
    value = -np.log(p[np.arange(EXAMPLES), data["y"]]).mean()
    return {"value": value, "gradient": rows.mean(0), "rows": rows, "hessian": hessian}


def few(objective, v, test):
    """The results that are asked for first."""
    hessian = ihvp.Hessian(objective)
    influence = ihvp.Influence(objective, damping=DAMPING, solver=ihvp.CG(rtol=1e-11))
    pairs = ihvp.eigsh(hessian, k=3, tol=1e-11)
    return {
        "value": objective.value(),
        "gradient": objective.gradient(),
        "rows": objective.per_example_gradients(),
        "product": hessian @ v[:, 0],
        "products": hessian @ v,
        "hessian": hessian.to_dense(),
        "CG": ihvp.solve(hessian, v[:, 0], damping=DAMPING, solver=ihvp.CG(rtol=1e-11)).x,
        "block CG": ihvp.solve(hessian, v, damping=DAMPING, solver=ihvp.CG(rtol=1e-11)).x,
        "eigenvalues": pairs.values,
        "projector": pairs.vectors @ pairs.vectors.T,
        "scores": influence.scores(test),
    }


def more(objective, v, test):
    """The other ones."""
    hessian, gauss_newton, opg = (kind(objective) for kind in (ihvp.Hessian, ihvp.GaussNewton, ihvp.OPG))
    influence = ihvp.Influence(objective, damping=DAMPING, solver=ihvp.Direct())
    top = influence.top_k(test, 4)
    on_inputs = influence.on_inputs(test)
    results = {
        "Gauss–Newton": gauss_newton @ v,
        "OPG": opg @ v,
        "eigenvalues of the OPG": ihvp.eigsh(opg, k=2, tol=1e-11).values,
        "cut": ihvp.Hessian(
            ihvp.Objective(cross_entropy, objective.params, objective.batches.data, 5, predict=logits)
        )
        @ v[:, 0],
        "trace": ihvp.trace(hessian, num_samples=8).value,
        "diagonal": ihvp.diagonal(hessian, num_samples=4).value,
        "top": top.scores,
        "top indices": top.indices,
        "self-influence": influence.self_influence(),
        "group": influence.group([[0, 1], [5]], test, second_order=True),
        "on inputs": on_inputs["x"],
    }
    solvers = {
        "MINRES": ihvp.MINRES(rtol=1e-11),
        "Direct": ihvp.Direct(),
        "LiSSA": ihvp.LiSSA(rtol=1e-11, recursion_depth=5000),
        "Nystrom": ihvp.CG(rtol=1e-11, preconditioner=ihvp.Nystrom(rank=5)),
        "auto": ihvp.Auto(rtol=1e-11),
    }
    for name, solver in solvers.items():
        results[name] = ihvp.solve(hessian, v, damping=DAMPING, solver=solver).x
    for kind in (ihvp.KFAC, ihvp.EKFAC):
        factored = kind(objective)
        results[kind.__name__] = factored @ v
        results[f"{kind.__name__} solved"] = ihvp.solve(factored, v, damping=DAMPING).x
    return results


def require_near(found, expected, where):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        ours, theirs = to_numpy(found[name]), to_numpy(value)
        assert ours.shape == theirs.shape, (where, name, ours.shape, theirs.shape)
        error = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
        assert error <= 1e-8, (where, name, error)
        if ours.dtype.kind == "i":
            assert_array_equal(ours, theirs, (where, name))


def over(mesh, tree, *spec):
    def put(array):
        entries = [axis if axis and len(array) % mesh.shape[axis] == 0 else None for axis in spec]
        sharding = NamedSharding(mesh, PartitionSpec(*entries[: array.ndim]))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)


def main(number, count, port):
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", count, number)
    jax.config.update("jax_enable_x64", True)
    params, data, v = problem()
    test = {name: array[:3] for name, array in data.items()}
    devices = np.array(jax.devices())
    line = Mesh(devices, ("data",))
    settings = {"replicated": (over(line, params), over(line, data, "data"))}
    if count > 1:
        settings["split"] = over(line, params, "data"), over(line, data, "data")
        settings["plain"] = jax.tree.map(jnp.asarray, params), over(line, data, "data")
    else:
        square = Mesh(devices.reshape(2, 2), ("data", "model"))
        explicit = Mesh(
            devices.reshape(2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2
        )
        pair = Mesh(devices[:2], ("data",))
        settings["split"] = over(square, params, "model"), over(square, data, "data")
        settings["split by columns, explicit"] = (
            over(explicit, params, None, "model"),
            over(explicit, data, "data"),
        )
        settings["on one device"] = jax.tree.map(jnp.asarray, params), over(pair, data, "data")
        settings["some over a mesh"] = {"b": params["b"], "w": over(pair, params["w"])}, data

    def results(params, data, v, of):
        objective = ihvp.Objective(cross_entropy, params, data, predict=logits)
        return of(objective, v, test)

    plain = jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, data), v
    expected, expected_more = results(*plain, few), results(*plain, more)
    closed = by_numpy(params, data)
    require_near({name: expected[name] for name in closed}, closed, "numpy")
    for where, (some_params, some_data) in settings.items():
        before = jax.tree.leaves(some_params)
        found = results(some_params, some_data, v, few)
        require_near(found, expected, where)
        require_near(results(some_params, some_data, v, more), expected_more, where)
        assert all(a is b for a, b in zip(before, jax.tree.leaves(some_params), strict=True))
        import time

        print(number, where, "right", time.process_time(), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "The parameters are not at an optimum")
    main(*map(int, sys.argv[1:]))
