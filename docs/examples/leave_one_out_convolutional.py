"""A small convolutional network on handwritten digits, without its 100 most influential training digits.

A loss that is not convex: each removal is trained from the optimum on, to the optimum nearby. After the CNN
of Koh and Liang (ICML 2017, section 4.2), on torch or JAX:

    python docs/examples/leave_one_out_convolutional.py torch
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_ENABLE_X64", "1")  # read when JAX is imported

import numpy as np
import scipy.optimize
from sklearn.datasets import load_digits

import ihvp
from ihvp.influence import LeaveOneOut

DECAY = 0.01
SHAPES = {
    "first": (4, 1, 3, 3), "first bias": (4, 1, 1),
    "second": (8, 4, 3, 3), "second bias": (8, 1, 1),
    "last": (32, 10), "last bias": (10,),
}  # fmt: skip


def torch_model(arrays: dict[str, np.ndarray]) -> tuple[Any, Callable, Callable]:
    import torch

    def data_loss(w, batch):
        x, y, masses = batch
        x = torch.tanh(torch.conv2d(x, w["first"], stride=2, padding=1) + w["first bias"])
        x = torch.tanh(torch.conv2d(x, w["second"], stride=2, padding=1) + w["second bias"])
        scores = x.reshape(len(x), -1) @ w["last"] + w["last bias"]
        return (masses * torch.nn.functional.cross_entropy(scores, y, reduction="none")).mean()

    def loss(w, batch):
        return data_loss(w, batch) + DECAY / 2 * sum((a * a).sum() for a in w.values())

    return {name: torch.tensor(array) for name, array in arrays.items()}, loss, data_loss


def jax_model(arrays: dict[str, np.ndarray]) -> tuple[Any, Callable, Callable]:
    import jax
    import jax.numpy as jnp

    def layer(x, kernel, bias):
        return jnp.tanh(jax.lax.conv_general_dilated(x, kernel, (2, 2), [(1, 1), (1, 1)]) + bias)

    def data_loss(w, batch):
        x, y, masses = batch
        x = layer(x, w["first"], w["first bias"])
        x = layer(x, w["second"], w["second bias"])
        scores = jax.nn.log_softmax(x.reshape(len(x), -1) @ w["last"] + w["last bias"])
        return -(masses * jnp.take_along_axis(scores, y[:, None], axis=1)[:, 0]).mean()

    def loss(w, batch):
        return data_loss(w, batch) + DECAY / 2 * sum((a * a).sum() for a in w.values())

    return {name: jnp.array(array) for name, array in arrays.items()}, loss, data_loss


def train(objective: ihvp.Objective, start: Any, factor: np.ndarray | None = None) -> Any:
    """The parameters at the optimum near ``start``, by L-BFGS.

    With a factor L of a Hessian ``L Lᵀ`` nearby it goes in the coordinates ``Lᵀ ω``, where the Hessian is
    nearly the identity: some dozen steps.
    """
    backend, space = objective.backend, objective.space
    factor = np.eye(objective.num_params) if factor is None else factor

    def at(z: np.ndarray) -> ihvp.Objective:
        flat = scipy.linalg.solve_triangular(factor, z, lower=True, trans=1)
        return objective.at(backend.unflatten(space.asarray(flat), objective.params))

    def value_and_gradient(z: np.ndarray) -> tuple[float, np.ndarray]:
        here = at(z)
        return here.value(), scipy.linalg.solve_triangular(factor, np.asarray(here.gradient()), lower=True)

    z = factor.T @ np.asarray(backend.flatten(start))
    options = {"maxiter": 5000, "maxfun": 10_000, "maxcor": 30, "ftol": 0, "gtol": 1e-9}
    return at(
        scipy.optimize.minimize(value_and_gradient, z, jac=True, options=options, method="L-BFGS-B").x
    ).params


def measure(framework: str, removals: int = 100, examples: int = 1500) -> tuple[LeaveOneOut, str]:
    """The removals, and the settings in words."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 1, 8, 8)
    x, y = images[:examples], labels[:examples]
    generator = np.random.default_rng(0)
    arrays = {
        name: np.zeros(shape) if "bias" in name else generator.normal(size=shape) / np.prod(shape[1:]) ** 0.5
        for name, shape in SHAPES.items()
    }
    params, loss, data_loss = {"torch": torch_model, "jax": jax_model}[framework](arrays)
    objective = ihvp.Objective(loss, params, (x, y, np.ones(examples)))
    objective = objective.at(train(objective, params))
    factor = np.linalg.cholesky(np.asarray(ihvp.Hessian(objective).to_dense()))
    objective = objective.at(train(objective, objective.params, factor))
    norms = [np.linalg.norm(objective.gradient())]

    def without(removed: np.ndarray, start: Any) -> Any:
        masses = np.ones(examples)
        masses[removed] = 0
        remaining = objective.on((x, y, masses))
        trained = train(remaining, start, factor)
        norms.append(np.linalg.norm(remaining.at(trained).gradient()))
        return trained

    tests = [(images[i : i + 1], labels[i : i + 1], np.ones(1)) for i in range(examples, len(images))]
    values = [objective.on(test, data_loss).value() for test in tests]
    test = tests[int(np.argmax(values))]
    influence = ihvp.Influence(objective, solver=ihvp.CG(rtol=1e-6), train_loss=data_loss)
    top = influence.top_k(test, removals, test_loss=data_loss).indices[0]
    found = ihvp.leave_one_out(
        objective, without, top, test, data_loss, solver=ihvp.CG(rtol=1e-6), train_loss=data_loss
    )
    return found, (
        f"P = {objective.num_params}, weight decay {DECAY}, damping 0, CG to 1e-6; "
        f"test loss {max(values):.2f}; gradient {norms[0]:.1e}, after the removals at most {max(norms):.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("framework", choices=("torch", "jax"))
    found, settings = measure(parser.parse_args().framework)
    print(settings)
    print(f"r {found.pearson}, Spearman {found.spearman}, slope {found.slope:.3f}")


if __name__ == "__main__":
    main()
