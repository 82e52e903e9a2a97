"""The same solves by what users would pick instead, each as its documentation recommends.

A solve is a function of one knob, its tolerance or number of iterations, and gives ``(P, k)``. Everything
from the model to the answer is inside, as it is on our side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.models import JaxModel, TensorFlowModel, TorchModel

Solve = Callable[[float], Callable[[], Any]]


def curvlinops_hessian(model: TorchModel) -> Any:
    """The Hessian as curvlinops has it, without its own check, which doubles the set-up."""
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(
        model.module, model.criterion, model.weights, [model.batch], check_deterministic=False
    )


def torch_solves(model: TorchModel, rhs: NDArray[Any], damping: float) -> dict[str, Solve]:
    """curvlinops, pyDVL with and without a common Krylov space, and dattri."""
    V = model.native(rhs)
    rows = V.T.contiguous()

    def curvlinops(tolerance: float) -> Callable[[], Any]:
        from curvlinops import CGInverseLinearOperator
        from curvlinops.examples import IdentityLinearOperator

        def solve() -> Any:
            H = curvlinops_hessian(model)
            eye = IdentityLinearOperator([tuple(w.shape) for w in model.weights], V.device, V.dtype)
            inverse = CGInverseLinearOperator(
                H + damping * eye, tolerance=tolerance, max_iter=10_000, max_tridiag_iter=0
            )
            return inverse @ V

        return solve

    def pydvl(**options: Any) -> Callable[[], Any]:
        from pydvl.influence.torch.operator import CgOperator, HessianOperator

        def solve() -> Any:
            H = HessianOperator(model.module, model.criterion, [model.batch])
            operator = CgOperator(H, damping, atol=1e-12, warn_on_max_iteration=False, **options)
            return operator.apply(rows).T

        return solve

    def pydvl_block(tolerance: float) -> Callable[[], Any]:
        # It squares the tolerance.
        return pydvl(rtol=tolerance**0.5, maxiter=10_000, use_block_cg=True)

    def pydvl_columns(iterations: float) -> Callable[[], Any]:
        # It takes the norms of single parameters for those of the right-hand sides, so that only the number
        # of iterations can stop it near a given residual.
        return pydvl(rtol=1e-12, maxiter=int(iterations))

    def dattri(iterations: float) -> Callable[[], Any]:
        import torch
        from dattri.func.hessian import ihvp_at_x_cg

        named = dict(model.module.named_parameters())
        shapes = [p.shape for p in named.values()]
        x, y = model.batch

        def loss(flat: Any) -> Any:
            pieces = flat.split([s.numel() for s in shapes])
            params = {n: p.view(s) for n, p, s in zip(named, pieces, shapes, strict=True)}
            return model.criterion(torch.func.functional_call(model.module, params, (x,)), y)

        def solve() -> Any:
            point = torch.cat([p.detach().reshape(-1) for p in named.values()])
            return ihvp_at_x_cg(loss, point, max_iter=int(iterations), regularization=damping)(rows).T

        return solve

    return {
        "curvlinops CG": curvlinops,
        "pyDVL block CG": pydvl_block,
        "pyDVL CG": pydvl_columns,
        "dattri CG": dattri,
    }


def scipy_solve(model: TorchModel, rhs: NDArray[Any], damping: float) -> Solve:
    """scipy's CG, column by column, on the operator that curvlinops exports."""

    def cg(tolerance: float) -> Callable[[], Any]:
        from scipy.sparse.linalg import LinearOperator
        from scipy.sparse.linalg import cg as scipy_cg

        def solve() -> Any:
            H = curvlinops_hessian(model).to_scipy()
            damped = LinearOperator(H.shape, lambda v: H @ v.ravel() + damping * v.ravel(), dtype=rhs.dtype)
            return np.stack([scipy_cg(damped, v, rtol=tolerance)[0] for v in rhs.T], axis=1)

        return solve

    return cg


def jax_solves(model: JaxModel, rhs: NDArray[Any], damping: float) -> dict[str, Solve]:
    """``jax.scipy`` over all columns at once, on a product linearised once, and lineax."""
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    V = model.native(rhs)
    point, unravel = ravel_pytree(model.params)

    def gradient(flat: Any, batch: Any) -> Any:
        return jax.grad(lambda at: model.loss(unravel(at), batch))(flat)

    def jax_scipy(tolerance: float) -> Callable[[], Any]:
        @jax.jit
        def solve(point: Any, batch: Any, V: Any) -> Any:
            _, product = jax.linearize(lambda at: gradient(at, batch), point)

            def one(v: Any) -> Any:
                return jax.scipy.sparse.linalg.cg(lambda x: product(x) + damping * x, v, tol=tolerance)[0]

            return jax.vmap(one, in_axes=1, out_axes=1)(V)

        return lambda: solve(point, model.batch, V)

    def lineax(tolerance: float) -> Callable[[], Any]:
        import lineax as lx

        @jax.jit
        def solve(point: Any, batch: Any, V: Any) -> Any:
            _, product = jax.linearize(lambda at: gradient(at, batch), point)
            operator = lx.FunctionLinearOperator(
                lambda x: product(x) + damping * x, point, lx.positive_semidefinite_tag
            )
            # Of the columns scaled to norm 1; entry by entry, its default, asks for far more.
            solver = lx.CG(rtol=0.0, atol=tolerance, norm=jnp.linalg.norm)

            def one(v: Any) -> Any:
                size = jnp.linalg.norm(v)
                return size * lx.linear_solve(operator, v / size, solver, throw=False).value

            return jax.vmap(one, in_axes=1, out_axes=1)(V)

        return lambda: solve(point, model.batch, V)

    return {"vmapped jax.scipy CG": jax_scipy, "lineax CG": lineax}


def tf_solves(model: TensorFlowModel, rhs: NDArray[Any], damping: float) -> dict[str, Solve]:
    """A loop of CG by hand in one ``tf.function``, column by column."""
    import tensorflow as tf

    shapes = [w.shape for w in model.params]
    sizes = [int(np.prod(s)) for s in shapes]
    columns = tf.constant(np.ascontiguousarray(rhs.T))

    def flat(parts: Any) -> Any:
        return tf.concat([tf.reshape(p, [-1]) for p in parts], axis=0)

    def product(v: Any) -> Any:
        pieces = [tf.reshape(p, s) for p, s in zip(tf.split(v, sizes), shapes, strict=True)]
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                value = model.loss(model.params, model.batch)
            slopes = inner.gradient(value, model.params)
        return flat(outer.gradient(slopes, model.params, output_gradients=pieces)) + damping * v

    def by_hand(tolerance: float) -> Callable[[], Any]:
        @tf.function
        def solve(rows: Any) -> Any:
            def one(v: Any) -> Any:
                x, r, p, rr = tf.zeros_like(v), v, v, tf.tensordot(v, v, 1)
                least = tolerance**2 * rr
                while rr > least:
                    q = product(p)
                    a = rr / tf.tensordot(p, q, 1)
                    x, r = x + a * p, r - a * q
                    before = rr
                    rr = tf.tensordot(r, r, 1)
                    p = r + rr / before * p
                return x

            return tf.transpose(tf.map_fn(one, rows))

        return lambda: solve(columns)

    return {"CG by hand in tf.function": by_hand}
