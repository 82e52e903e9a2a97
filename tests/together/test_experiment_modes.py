"""The ways to a Hessian product that `ihvp experiment modes` compares, on every backend."""

import numpy as np
import pytest

from ihvp._registry import usable_plugin
from ihvp.experiments import modes, network

WAYS = {
    "torch": ["forward over reverse", "reverse over reverse", "linearised once", "finite differences"],
    "jax": ["forward over reverse", "reverse over reverse", "linearised once", "finite differences"],
    "tf": ["forward over reverse", "reverse over reverse", "finite differences"],
    "numdiff": ["finite differences"],
}


# At its first use of forward mode torch compiles its own formulas with a function it has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", WAYS)
def test_every_way_gives_the_product(name):
    rng = np.random.default_rng(3)
    weights, batch = network.made(rng, inputs=3, hidden=5, examples=20)
    direction, _ = network.made(rng, inputs=3, hidden=5, examples=1)
    wide = ({key: array.astype(float) for key, array in tree.items()} for tree in (weights, direction))
    exact = network.exact_product(network.gradient, next(wide), batch, next(wide))
    ways = modes.Ways(usable_plugin(name), weights, batch, direction)
    assert ways.names == WAYS[name]
    for way in ways.names:
        product = modes._flat(ways.call(way)())
        allowed = 3e-3 if way == "finite differences" else 1e-5
        assert np.linalg.norm(product - exact) <= allowed * np.linalg.norm(exact), way
