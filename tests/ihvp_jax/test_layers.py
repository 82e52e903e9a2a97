"""Models opened at their layers: what is seen is complete, and everything else is left out.

The oracle is the gradient by the parameters, of the whole batch and of each example, by ``jax.grad`` alone. A
layer's inputs and derivatives must multiply out to its part of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from ihvp.errors import LossError, UnequalBatches
from ihvp_jax._backend import JaxBackend

ROWS = 3


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape) / 2


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def check(
    predict: Callable[..., Any],
    params: Any,
    batch: Any,
    names: set[str],
    *,
    whole: bool = False,
    tolerance: float = 1e-12,
) -> dict[str, Any]:
    """Open a model; compare with the gradients of the examples, and of the ``whole`` batch. What was seen."""
    opened = JaxBackend().open(predict, params, batch)
    outputs, of_examples, of_whole = jax.jit(partial(oracle, predict, whole))(params, batch)
    assert list(opened.shapes) == [leaf.shape for leaf in outputs]
    np.testing.assert_allclose(opened.outputs(), flat(outputs), rtol=0, atol=tolerance)
    # Two cotangents, of which the second is compared.
    derivatives = opened.pull_back(
        np.stack([np.ones(opened.outputs().size), cotangent(opened.outputs().size)])
    )
    for layer, a, g in zip(opened.layers, opened.inputs, derivatives, strict=True):
        found = matrices(layer, np.asarray(a), np.asarray(g[1]))
        for part, entries in zip(layer.slices, layer.parts(found), strict=True):
            np.testing.assert_allclose(entries.T, of_examples[:, part], rtol=0, atol=tolerance)
            if whole:
                np.testing.assert_allclose(entries.sum(axis=1), of_whole[part], rtol=0, atol=tolerance)
    assert {layer.name for layer in opened.layers} == names
    assert len(opened.layers) == len(names)
    covered = [i for layer in opened.layers for part in layer.slices for i in range(part.start, part.stop)]
    assert len(covered) == len(set(covered))
    return {layer.name: (layer, a) for layer, a in zip(opened.layers, opened.inputs, strict=True)}


def cotangent(size: int) -> np.ndarray:
    return normal(size, seed=7)


def oracle(predict: Callable[..., Any], whole: bool, params: Any, batch: Any) -> Any:
    """What the model gives, and the gradient of its product with a cotangent: of each example, of all."""
    outputs = jax.tree.leaves(predict(params, batch))
    rows = len(jax.tree.leaves(batch)[0])
    stops = np.cumsum([leaf.size for leaf in outputs])
    pieces = np.split(cotangent(stops[-1]), stops[:-1])

    def product(params: Any, batch: Any, pieces: Any) -> Any:
        outputs = jax.tree.leaves(predict(params, batch))
        return sum(jnp.sum(a.ravel() * b.ravel()) for a, b in zip(outputs, pieces, strict=True))

    def of_one(*example: Any) -> Any:
        return joined(jax.grad(product)(params, *jax.tree.map(lambda leaf: leaf[None], example)))

    singles = jax.vmap(of_one)(batch, [piece.reshape(rows, -1) for piece in pieces])
    return outputs, singles, joined(jax.grad(product)(params, batch, pieces)) if whole else None


def joined(tree: Any) -> Any:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def matrices(layer: Any, a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """``Σ_s g aᵀ`` of each example, ``(B, groups, d_out, d_in)``, and the bias's column."""
    if layer.one_hot:
        assert a.dtype.kind in "iu"
        a = np.eye(layer.d_in)[a][:, :, None, :]
    assert a.shape == (*g.shape[:3], layer.d_in)
    assert g.shape[2:] == (layer.groups, layer.d_out)
    if layer.bias is not None:
        a = np.concatenate([a, np.ones((*a.shape[:-1], 1))], axis=-1)
    return np.einsum("bsgo,bsgi->bgoi", g, a)


def dense(params: dict, x: Any) -> Any:
    return x @ params["kernel"] + params["bias"]


def layer(d_in: int, d_out: int, seed: int = 0) -> dict:
    return {"kernel": normal(d_in, d_out, seed=seed), "bias": normal(d_out, seed=seed)}


MLP = {"first": layer(4, 5), "second": layer(5, 2)}


def mlp(params: dict, batch: Any) -> Any:
    return dense(params["second"], jnp.tanh(dense(params["first"], batch[0])))


def test_layers_of_a_network() -> None:
    seen = check(mlp, MLP, (normal(ROWS, 6, 4),), {"first", "second"}, whole=True)
    first, a = seen["first"]
    assert (first.start, first.shape, first.axes, first.bias) == (5, (4, 5), (1, 0), 0)
    np.testing.assert_array_equal(np.asarray(a)[:, :, 0], normal(ROWS, 6, 4))


def side_by_side(functions: dict[str, Any]) -> Any:
    """A model of several functions of the same input, each with parameters of its own; compiled together."""
    return lambda params, x: {name: function(params[name], x) for name, function in functions.items()}


LAYOUTS: dict[str, Any] = {
    "transposed": lambda w, x: x @ w.T,
    "on the left": lambda w, x: (w @ x.T).T,
    "of one vector": lambda w, x: jax.vmap(lambda row: w @ row)(x),
    "einsum": lambda w, x: jnp.einsum("oi,ni->no", w, x),
    "jit": lambda w, x: jax.jit(jnp.dot)(x, jnp.transpose(w)),
    "reshaped": lambda w, x: x.reshape(-1, 1, 4) @ w.reshape(1, 5, 4)[0].T,
    "dot_general": lambda w, x: jax.lax.dot_general(w, x, (((1,), (1,)), ((), ()))).T,
    "two axes": lambda w, x: jnp.tensordot(x.reshape(-1, 2, 2), w.reshape(5, 2, 2), axes=((1, 2), (1, 2))),
}


def test_a_weight_on_either_side_and_in_any_layout() -> None:
    def added(function: Any) -> Any:
        return lambda params, x: function(params["w"], x) + params["b"]

    params = {name: {"w": normal(5, 4), "b": normal(5)} for name in LAYOUTS}
    predict = side_by_side({name: added(function) for name, function in LAYOUTS.items()})
    seen = check(predict, params, normal(ROWS, 4), set(LAYOUTS))
    for layer, _ in seen.values():
        assert (layer.shape, layer.axes) == ((5, 4), (0, 1))


def test_examples_need_not_stay_the_first_axis() -> None:
    # As many positions as examples: shapes alone would not tell which axis is which.
    def predict(params: Any, x: Any) -> Any:
        positions_first = jnp.swapaxes(x, 0, 1)
        return jnp.swapaxes(dense(params, positions_first), 0, 1)

    check(predict, layer(4, 2), normal(ROWS, ROWS, 4), {"kernel"}, whole=True)


def test_rows_of_examples_and_positions_are_taken_apart() -> None:
    def predict(params: Any, x: Any) -> Any:
        return jnp.tanh(dense(params["first"], x.reshape(-1, 4))) @ params["second"]["kernel"]

    opened = JaxBackend().open(predict, MLP, normal(ROWS, 6, 4))
    assert opened.shapes == ((ROWS * 6, 2),)
    check(predict, MLP, normal(ROWS, 6, 4), {"first", "second/kernel"}, whole=True)


DIMENSIONS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NCDHW", "OIDHW", "NCDHW")}
CONVOLUTIONS: dict[int, dict[str, dict]] = {
    1: {"plain": {}, "groups": {"feature_group_count": 2}},
    2: {
        "same": {"padding": "SAME"},
        "strides": {"window_strides": (2, 1), "padding": ((1, 0), (2, 1))},
        "dilation": {"rhs_dilation": (2, 1)},
        "transposed": {"lhs_dilation": (2, 3), "padding": ((1, 1), (-1, 2))},
        "depthwise": {"feature_group_count": 4, "window_strides": (1, 2)},
    },
    3: {"plain": {}, "groups": {"feature_group_count": 2, "rhs_dilation": (1, 2, 1)}},
}


@pytest.mark.parametrize("spatial", CONVOLUTIONS)
def test_convolutions_are_layers_of_patches(spatial: int) -> None:
    numbers, functions, params = DIMENSIONS[spatial], {}, {}
    for name, options in CONVOLUTIONS[spatial].items():
        groups = options.get("feature_group_count", 1)
        sizes = {"O": 8, "I": 4 // groups}
        kernel = normal(*(sizes.get(letter, 2 + (letter == "W")) for letter in numbers[1]))
        params[name] = {"kernel": kernel, "bias": normal(8)}
        functions[name] = partial(convolution, numbers, options)
    sizes = {"N": ROWS, "C": 4}
    x = normal(*(sizes.get(letter, 5) for letter in numbers[0]))
    seen = check(side_by_side(functions), params, x, set(functions))
    for name, options in CONVOLUTIONS[spatial].items():
        assert seen[name][0].groups == options.get("feature_group_count", 1)
        assert seen[name][0].bias is not None


def convolution(numbers: Any, options: dict, params: Any, x: Any) -> Any:
    settings = {"window_strides": (1,) * (x.ndim - 2), "padding": "VALID"} | options
    y = jax.lax.conv_general_dilated(x, params["kernel"], dimension_numbers=numbers, **settings)
    return jnp.tanh(y + params["bias"].reshape([8 if letter == "C" else 1 for letter in numbers[2]]))


def attention(params: Any, x: Any) -> Any:
    q, k, v = (
        jnp.einsum("btd,dhk->bthk", x, params[name]["kernel"]) + params[name]["bias"] for name in "qkv"
    )
    weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / 2, axis=-1)
    mixed = jnp.einsum("bhts,bshk->bthk", weights, v)
    return x + jnp.einsum("bthk,hkd->btd", mixed, params["out"]["kernel"]) + params["out"]["bias"]


ATTENTION = {
    name: {"kernel": normal(4, 2, 3, seed=i), "bias": normal(2, 3, seed=i)} for i, name in enumerate("qkv")
} | {"out": {"kernel": normal(2, 3, 4), "bias": normal(4)}}


def test_projections_of_attention_have_several_axes() -> None:
    seen = check(attention, ATTENTION, normal(ROWS, 5, 4), {"q", "k", "v", "out"}, whole=True)
    assert (seen["q"][0].d_in, seen["q"][0].d_out) == (4, 6)
    assert (seen["out"][0].d_in, seen["out"][0].d_out) == (6, 4)


def test_experts_side_by_side_are_groups() -> None:
    def predict(params: Any, x: Any) -> Any:
        return jnp.einsum("nei,eio->neo", x, params["w"]) + params["b"]

    seen = check(predict, {"w": normal(2, 4, 5), "b": normal(2, 5)}, normal(ROWS, 2, 4), {"w"})
    assert (seen["w"][0].groups, seen["w"][0].bias) == (2, 0)


TOKENS = np.array([[1, 0, 6, 1], [2, 2, -1, 5], [0, 3, 4, 1]])


LOOKUPS: dict[str, Any] = {
    "indexed": lambda table, tokens: table[tokens],
    "taken": lambda table, tokens: jnp.take(table, tokens, axis=0),
    "columns": lambda table, tokens: jnp.take(table.T, tokens % 7, axis=1, mode="clip").transpose(1, 2, 0),
    "one by one": lambda table, tokens: jax.vmap(jax.vmap(lambda token: table[token]))(tokens),
}


def test_a_lookup_is_a_layer_of_unit_vectors() -> None:
    functions = {
        name: lambda table, x, f=function: jnp.tanh(f(table, x)) for name, function in LOOKUPS.items()
    }
    seen = check(side_by_side(functions), {name: normal(7, 4) for name in LOOKUPS}, TOKENS, set(LOOKUPS))
    for table, indices in seen.values():
        assert table.one_hot
        np.testing.assert_array_equal(indices, TOKENS % 7)


def test_numbers_that_fill_in_for_a_table_are_none_of_it() -> None:
    def predict(table: Any, tokens: Any) -> Any:
        return jnp.take(table, tokens, axis=0, mode="fill", fill_value=0.0)

    check(predict, normal(5, 4), TOKENS, set())


def test_embedding_and_readout_that_share_a_weight_are_left_out() -> None:
    def predict(params: Any, tokens: Any) -> Any:
        return jnp.tanh(params["table"][tokens] @ params["w"]) @ params["table"].T

    check(predict, {"table": normal(7, 4), "w": normal(4, 4)}, TOKENS, {"w"})


def test_uses_of_one_weight_stand_side_by_side() -> None:
    def predict(params: Any, x: Any) -> Any:
        return dense(params, jnp.tanh(dense(params, jnp.tanh(dense(params, x)))))

    seen = check(predict, layer(4, 4), normal(ROWS, 4), {"kernel"})
    assert seen["kernel"][1].shape == (ROWS, 3, 1, 4)


BIASES: dict[str, tuple[Any, bool]] = {
    "added last": (lambda y, b, x: jnp.tanh(x + y + b), True),
    "added first": (lambda y, b, x: b + checkpoint_name(y, "y"), True),
    "after a cast": (lambda y, b, x: y.astype(jnp.float64)[:, None] + b, True),
    "only at one of two": (lambda y, b, x: (y + b) * jnp.sin(y), False),
    "used elsewhere too": (lambda y, b, x: (y + b) * b, False),
    "scaled": (lambda y, b, x: y + 2 * b, False),
    "subtracted": (lambda y, b, x: y - b, False),
    "turned round": (lambda y, b, x: y + b[::-1], False),
    "at some places": (lambda y, b, x: jnp.concatenate([y[:, :2] + b[:2], y[:, 2:]], axis=1), False),
    "of another layer's input": (lambda y, b, x: y * (x + b), False),
    "twice": (lambda y, b, x: y + b + b, False),
}


def test_a_bias_is_added_to_all_that_a_layer_gives_and_to_nothing_else() -> None:
    def added(add: Any) -> Any:
        return lambda params, x: add(x @ params["kernel"], params["bias"], x)

    predict = side_by_side({name: added(add) for name, (add, _) in BIASES.items()})
    names = {name if is_bias else f"{name}/kernel": is_bias for name, (_, is_bias) in BIASES.items()}
    seen = check(predict, dict.fromkeys(BIASES, layer(4, 4)), normal(ROWS, 4), set(names))
    for name, is_bias in names.items():
        assert (seen[name][0].bias is not None) == is_bias


def test_a_bias_of_positions_is_none() -> None:
    def predict(params: Any, x: Any) -> Any:
        return x @ params["kernel"] + params["bias"]

    seen = check(predict, {"kernel": normal(4, 4), "bias": normal(4, 4)}, normal(ROWS, 4, 4), {"kernel"})
    assert seen["kernel"][0].bias is None


def test_a_weight_that_is_used_in_another_way_too_is_left_out() -> None:
    def predict(params: Any, x: Any) -> Any:
        return mlp(params, x) + jnp.sum(params["first"]["kernel"] ** 2)

    check(predict, MLP, (normal(ROWS, 4),), {"second"})


COMPUTED: dict[str, Any] = {
    "normalised": lambda w: w / jnp.linalg.norm(w),
    "columns": lambda w: w[:, :3],
    "every other row": lambda w: jax.lax.slice(w, (0, 0), (4, 4), (2, 1)),
    "a product": lambda w: w @ w.T,
    "masked": lambda w: jnp.where(w > 0, w, 0.0),
    "rounded": lambda w: w.astype(int).astype(float),
}


def test_a_weight_that_is_computed_is_left_out() -> None:
    def multiplied(weight: Any) -> Any:
        return lambda w, x: x[:, : len(weight(w))] @ weight(w)

    predict = side_by_side({name: multiplied(weight) for name, weight in COMPUTED.items()})
    check(predict, {name: normal(4, 4) for name in COMPUTED}, normal(ROWS, 4), set())


def test_parts_of_one_flat_array_are_layers() -> None:
    def predict(w: Any, x: Any) -> Any:
        hidden = jnp.tanh(x @ w[:20].reshape(4, 5) + w[20:25])
        return (hidden @ w[25:35].reshape(5, 2)) * w[35:37]

    seen = check(predict, normal(37), normal(ROWS, 4), {"params[0]", "params[1]"})
    assert [layer.bias for layer, _ in seen.values()] == [20, None]


def test_weights_split_along_their_first_axis_are_layers() -> None:
    def predict(w: Any, x: Any) -> Any:
        first, second = jnp.split(w, 2)
        return jnp.tanh(x @ first) @ second

    check(predict, {"w": normal(8, 4)}["w"], normal(ROWS, 4), {"params[0]", "params[1]"})


CELL = {"x": layer(4, 5), "h": normal(5, 5)}


def recurrent(params: Any, x: Any, **options: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = jnp.tanh(x @ params["x"]["kernel"] + h @ params["h"] + params["x"]["bias"])
        return h, h[:, :2]

    last, each = jax.lax.scan(step, jnp.zeros((len(x), 5)), jnp.swapaxes(x, 0, 1), **options)
    return last, jnp.swapaxes(each, 0, 1)


def test_steps_of_a_recurrent_network_share_its_layers() -> None:
    functions = {"forward": recurrent, "backward": partial(recurrent, reverse=True)}
    names = {f"{name}/{part}" for name in functions for part in "xh"}
    seen = check(side_by_side(functions), dict.fromkeys(functions, CELL), normal(ROWS, 6, 4), names)
    assert seen["forward/h"][1].shape == (ROWS, 6, 1, 5)


STACK = {"kernel": normal(3, 4, 4), "bias": normal(3, 4)}


def stacked(params: Any, x: Any, wrap: Any = lambda block: block) -> Any:
    def block(x: Any, params: Any) -> Any:
        return x + jnp.tanh(dense(params, x)), None

    return jax.lax.scan(wrap(block), x, params)[0]


def test_weights_that_a_loop_goes_over_are_as_many_layers() -> None:
    seen = check(
        lambda params, x: stacked(params["blocks"], x),
        {"blocks": STACK},
        normal(ROWS, 2, 4),
        {f"blocks[{i}]" for i in range(3)},
    )
    assert [layer.bias for layer, _ in seen.values()] == [0, 4, 8]


def test_a_bias_is_left_out_if_blocks_share_one_of_the_two() -> None:
    def predict(params: Any, x: Any) -> Any:
        def block(x: Any, own: Any) -> Any:
            return jnp.tanh(dense(params | own, x)), None

        return jax.lax.scan(block, x, {key: leaf for key, leaf in params.items() if len(leaf) == 3})[0]

    params = {
        "bias": {"kernel": normal(3, 4, 4), "bias": normal(4)},
        "weight": {"kernel": normal(4, 4), "bias": normal(3, 4)},
    }
    names = {*(f"bias/kernel[{i}]" for i in range(3)), "weight/kernel"}
    seen = check(side_by_side(dict.fromkeys(params, predict)), params, normal(ROWS, 4), names)
    assert all(layer.bias is None for layer, _ in seen.values())


def test_loops_within_loops() -> None:
    def predict(params: Any, x: Any) -> Any:
        def block(h: Any, w: Any) -> Any:
            return jax.lax.scan(
                lambda h, _: (jnp.tanh(h @ w + h @ params["shared"]), None), h, None, length=2
            )[0], None

        return jax.lax.scan(block, x, params["w"])[0]

    params = {"shared": normal(4, 4), "w": STACK["kernel"]}
    seen = check(predict, params, normal(ROWS, 4), {"shared", "w[0]", "w[1]", "w[2]"})
    assert seen["shared"][1].shape[1] == 6
    assert seen["w[1]"][1].shape[1] == 2


def test_weights_that_a_loop_carries_are_left_out() -> None:
    def predict(w: Any, x: Any) -> Any:
        return jax.lax.fori_loop(
            0, 2, lambda _, state: (jnp.tanh(state[0] @ state[1]), -state[1]), (x @ w, w)
        )[0]

    check(predict, normal(4, 4), normal(ROWS, 4), set())


WRAPS: dict[str, Any] = {
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "policy": partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable),
    "all": lambda function: jax.jit(jax.checkpoint(jax.jit(function))),
}


def test_calls_are_looked_through() -> None:
    functions = {name: wrap(lambda params, x: mlp(params, (x,))) for name, wrap in WRAPS.items()}
    names = {f"{name}/{part}" for name in WRAPS for part in MLP}
    check(side_by_side(functions), dict.fromkeys(WRAPS, MLP), normal(ROWS, 4), names)
    functions = {name: partial(stacked, wrap=wrap) for name, wrap in WRAPS.items()}
    names = {f"{name}[{i}]" for name in WRAPS for i in range(3)}
    check(side_by_side(functions), dict.fromkeys(WRAPS, STACK), normal(ROWS, 4), names)


@jax.custom_vjp
def doubled_gradient(x: Any) -> Any:
    return jnp.sin(x)


doubled_gradient.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (2 * g * jnp.cos(x),))


@jax.custom_vjp
def custom_product(x: Any, w: Any) -> Any:
    return x @ w


custom_product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))


def test_custom_derivatives_keep_their_rules_and_hide_their_layers() -> None:
    def predict(params: Any, batch: Any) -> Any:
        hidden = jax.nn.silu(doubled_gradient(dense(params["first"], batch[0])))
        return custom_product(hidden, params["second"]["kernel"]) + params["second"]["bias"]

    check(predict, MLP, (normal(ROWS, 4),), {"first"})


def test_layers_within_other_control_flow_are_left_out() -> None:
    def predict(params: Any, batch: Any) -> Any:
        hidden = jnp.tanh(dense(params["first"], batch[0]))
        return jax.lax.cond(
            jnp.sum(hidden) > 0, dense, lambda params, x: -dense(params, x), params["second"], hidden
        )

    opened = JaxBackend().open(predict, MLP, (normal(ROWS, 4),))
    assert [layer.name for layer in opened.layers] == ["first"]
    check(predict, MLP, (normal(1, 4),), {"first"})


def test_weights_beneath_vmap_are_groups_or_give_side_by_side() -> None:
    def each_its_own(params: Any, x: Any) -> Any:
        return jax.vmap(dense, in_axes=(0, 1), out_axes=1)(params, x)

    def all_the_same(params: Any, x: Any) -> Any:
        return jax.vmap(dense, in_axes=(0, None), out_axes=1)(params, x)

    params = {"kernel": normal(2, 4, 5), "bias": normal(2, 5)}
    for predict, x, groups in ((each_its_own, normal(ROWS, 2, 4), 2), (all_the_same, normal(ROWS, 4), 1)):
        seen = check(predict, params, x, {"kernel"})
        assert (seen["kernel"][0].groups, seen["kernel"][0].bias) == (groups, 0)


def test_outputs_may_have_a_structure() -> None:
    def predict(params: Any, batch: Any) -> Any:
        hidden = jnp.tanh(dense(params["first"], batch["x"]))
        return {
            "mean": dense(params["second"], hidden),
            "all": (hidden, jnp.sum(hidden, axis=1) * batch["scale"]),
        }

    def loss(outputs: Any, batch: Any) -> Any:
        return jnp.sum((outputs["mean"] - batch["x"][:, :2]) ** 2) / 2 + jnp.sum(outputs["all"][1])

    batch = {"x": normal(ROWS, 4), "scale": np.float64(2.0), "name": "a constant"}
    opened = JaxBackend().open(predict, MLP, batch)
    assert opened.shapes == ((ROWS, 5), (ROWS,), (ROWS, 2))
    arrays = {"x": batch["x"], "scale": batch["scale"]}
    expected = jax.jit(lambda arrays: jax.grad(loss)(predict(MLP, arrays), arrays))(arrays)
    np.testing.assert_allclose(opened.output_gradient(loss), flat(expected), rtol=1e-12)
    v = normal(opened.outputs().size, 3)
    squares = np.concatenate([np.zeros(6 * ROWS), np.ones(2 * ROWS)])
    np.testing.assert_allclose(opened.output_hvp(loss, v), squares[:, None] * v, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_in_the_dtype_of_the_parameters(dtype: str, tolerance: float) -> None:
    cast = partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, dtype))
    seen = check(mlp, cast(MLP), cast((normal(ROWS, 4),)), {"first", "second"}, tolerance=tolerance)
    assert seen["second"][1].dtype == "float32"


def test_computing_in_a_narrower_dtype_gives_that_of_the_parameters() -> None:
    def predict(params: Any, batch: Any) -> Any:
        narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        return mlp(narrow, (batch.astype(jnp.bfloat16),))

    seen = check(
        predict, jax.tree.map(jnp.asarray, MLP), normal(ROWS, 4), {"first", "second"}, tolerance=0.05
    )
    assert seen["second"][1].dtype == "float64"


def test_one_example_without_arrays() -> None:
    opened = JaxBackend().open(lambda w, batch: jnp.ones((1, 4)) @ w, normal(4, 2), None)
    assert opened.shapes == ((1, 2),)
    np.testing.assert_allclose(opened.inputs[0], np.ones((1, 1, 1, 4)))


def test_outputs_that_are_not_one_an_example_are_refused() -> None:
    with pytest.raises(LossError, match="for one example"):
        JaxBackend().open(lambda w, x: (x @ w).T, normal(4, 2), normal(ROWS, 4))


def test_arrays_of_unequal_length_are_refused() -> None:
    with pytest.raises(UnequalBatches):
        JaxBackend().open(lambda w, batch: batch[0] @ w, normal(4, 2), (normal(3, 4), normal(2)))


class Counted:
    def __init__(self) -> None:
        self.traces = 0

    def __call__(self, params: Any, batch: Any) -> Any:
        self.traces += 1
        return mlp(params, batch)


def test_batches_of_one_shape_are_traced_once() -> None:
    predict, backend = Counted(), JaxBackend()
    traces = []
    for seed in range(3):
        batch = (normal(ROWS, 4, seed=seed),)
        opened = backend.open(predict, MLP, batch)
        opened.pull_back(normal(2, 2 * ROWS))
        backend.grad(backend.cotangent_loss(predict), MLP, (batch, [normal(ROWS, 2)]))
        traces.append(predict.traces)
    assert traces[0] == traces[-1]


def test_cotangent_loss_is_the_product_with_the_outputs() -> None:
    backend, x, c = JaxBackend(), normal(ROWS, 4), normal(ROWS, 2)
    loss = backend.cotangent_loss(mlp)
    gradient = backend.grad(loss, MLP, ((x,), [c]))
    np.testing.assert_allclose(
        backend.per_example_grads(loss, MLP, ((x,), [c])).sum(axis=0), gradient, rtol=1e-12
    )
    np.testing.assert_allclose(gradient, flat(jax.grad(lambda p: jnp.sum(mlp(p, (x,)) * c))(MLP)), rtol=1e-12)
    assert loss == backend.cotangent_loss(mlp)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    weight: Any
    layers: list


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Variable:
    value: Any


def test_blocks_have_the_names_of_their_paths() -> None:
    params = {
        "dense": {"kernel": normal(2, 3), "bias": normal(3)},
        "net": Module(normal(2), [normal(1), normal(4)]),
    }
    assert JaxBackend().blocks(params) == {
        "dense/bias": slice(0, 3),
        "dense/kernel": slice(3, 9),
        "net/weight": slice(9, 11),
        "net/layers/0": slice(11, 12),
        "net/layers/1": slice(12, 16),
    }
    assert JaxBackend().blocks(normal(3)) == {"params": slice(0, 3)}
    assert JaxBackend().blocks({"kernel": Variable(normal(3))}) == {"kernel": slice(0, 3)}
    assert len(JaxBackend().blocks({"a/b": normal(1), "a": {"b": normal(1)}})) == 2
