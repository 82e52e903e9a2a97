"""A product ``∇² f · v`` as two flat graphs: what all vectors share, and what depends on the vector."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ihvp_torch._fold import fold_repeated
from ihvp_torch._turns import silently

# Operations that cost nothing: each graph has its own, so that no view is kept in memory as a tensor.
_VIEWS = (
    *("alias", "detach", "t", "transpose", "permute", "view", "reshape", "_unsafe_view", "expand", "squeeze"),
    *("unsqueeze", "select", "slice", "split", "split_with_sizes", "unbind", "diagonal", "as_strided"),
)


@dataclass(frozen=True)
class Trace:
    """What a linear map of ``v`` does, as operations on tensors."""

    # Of all inputs but v, the constants behind them: the values that the products need.
    shared: fx.GraphModule
    linear: fx.GraphModule  # of those values, the inputs numbered in passed, and v: the product
    passed: list[int]
    constants: list[Tensor]  # the tensors that the function found elsewhere than in its inputs
    widest: int  # the entries of the largest value that depends on v


def trace(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Trace:
    """The operations of ``function(*inputs)``, whose last input is ``v``, without computing anything.

    Raises
    ------
    Exception
        Of any kind, where the function asks for values of its inputs, or leaves torch.
    """
    # There are deprecations inside torch itself.
    with silently(), torch.autograd.set_multithreading_enabled(False):
        recorded = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        # Without operations in place, whose order would matter.
        flat = torch.func.functionalize(recorded)
        pure = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    if any(node.target is torch.ops.aten._local_scalar_dense.default for node in pure.graph.nodes):
        raise RuntimeError("The function makes a number of a tensor, as item() does.")
    constants = _lift_constants(pure)
    return _split(pure, constants)


def _lift_constants(module: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds into inputs, in front of the last one."""
    held: dict[str, fx.Node] = {}
    last = _inputs(module.graph)[-1]
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            if node.target not in held:
                with module.graph.inserting_before(last):
                    held[node.target] = module.graph.placeholder(f"constant_{len(held)}")
                    held[node.target].meta["val"] = getattr(module, node.target)
            node.replace_all_uses_with(held[node.target])
            module.graph.erase_node(node)
    return [getattr(module, name) for name in held]


def _split(module: fx.GraphModule, constants: list[Tensor]) -> Trace:
    nodes = list(module.graph.nodes)
    *given, v = _inputs(module.graph)
    depends = {v}
    for node in nodes:
        if any(source in depends for source in node.all_input_nodes):
            depends.add(node)
    (result,) = nodes[-1].all_input_nodes
    # Backwards from the product, through what depends on v and through views, to values that do not.
    inside, values, todo = set(), dict.fromkeys([v]), [result]
    while todo:
        node = todo.pop()
        if node not in inside and node not in values:
            if node in depends or _is_view(node):
                inside.add(node)
                todo += node.all_input_nodes
            else:
                values[node] = None
    passed = [i for i, node in enumerate(given) if node in values]
    computed = [node for node in values if node is not v and node not in given]
    shared = _graph(module, given, (n for n in nodes if n not in depends), computed)
    arguments = [*computed, *(given[i] for i in passed), v]
    linear = _graph(module, arguments, (n for n in nodes if n in inside), [result])
    fold_repeated(linear.graph)
    linear.recompile()
    widest = max(value.numel() for node in depends if isinstance(value := node.meta.get("val"), Tensor))
    return Trace(shared, linear, passed, constants, int(widest))


def _graph(
    module: fx.GraphModule, inputs: Sequence[fx.Node], nodes: Iterable[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node, copy in copies.items():
        copy.meta = node.meta
    for node in nodes:
        if node not in copies and node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)


def _inputs(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    packet: Any = getattr(node.target, "overloadpacket", None)
    return packet is not None and packet.__name__ in _VIEWS
