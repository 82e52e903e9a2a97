"""Vector algebra on the device: dot products, updates in place, norms.

Vectors are ``(P,)``, blocks ``(P, k)``. Scalars come to the host as float64 (one number a column): there are
few of them, and recurrences on them should not suffer from the vectors' precision.

Operations write where the array type allows. JAX's arrays are immutable; their memory is given up to the
result instead, so that an operand which is written to is gone afterwards, on every framework alike.
"""

from __future__ import annotations

from ihvp.algebra._arrays import (
    agreed,
    all_finite,
    as_array,
    as_like,
    as_numpy,
    by_columns,
    column,
    columns,
    concatenate,
    copy,
    device,
    fused,
    join,
    keep,
    outside_traces,
    slices,
    summed,
    take,
    to_numpy,
    wide,
    without_explicit_axes,
    zeros_like,
)
from ihvp.algebra._blocks import add_product, gram, gram_parts, matmul, multiply, plus_product, small, total
from ihvp.algebra._threads import leaving_the_cores_to
from ihvp.algebra._vectors import (
    axpy,
    coefficients,
    dot_parts,
    dots,
    in_slices,
    norms,
    scale,
    scaled,
    shifted,
    subtract_from,
    xpay,
)

__all__ = [
    "add_product",
    "agreed",
    "all_finite",
    "as_array",
    "as_like",
    "as_numpy",
    "axpy",
    "by_columns",
    "coefficients",
    "column",
    "columns",
    "concatenate",
    "copy",
    "device",
    "dot_parts",
    "dots",
    "fused",
    "gram",
    "gram_parts",
    "in_slices",
    "join",
    "keep",
    "leaving_the_cores_to",
    "matmul",
    "multiply",
    "norms",
    "outside_traces",
    "plus_product",
    "scale",
    "scaled",
    "shifted",
    "slices",
    "small",
    "subtract_from",
    "summed",
    "take",
    "to_numpy",
    "total",
    "wide",
    "without_explicit_axes",
    "xpay",
    "zeros_like",
]
