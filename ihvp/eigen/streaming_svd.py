"""The leading singular values and vectors of a tall matrix whose rows come in chunks, seen once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import check_integer
from ihvp.backend import Vector
from ihvp.errors import EmptyData


@dataclass(frozen=True)
class StreamedSVD:
    """What is known of a matrix J ``(rows, P)`` after one pass over its rows."""

    values: NDArray[np.float64]  # (r,), its leading singular values, descending, never above the true ones
    vectors: Vector  # (P, r), its right singular vectors, orthonormal
    rows: int  # the rows that were seen
    # trace(JᵀJ − V diag(values²) Vᵀ), summed over what each truncation left out. The difference is positive
    # semi-definite, so this bounds the error of every squared singular value; 0 means that all is exact
    discarded: float


def streaming_svd(chunks: Iterable[Vector], /, *, rank: int) -> StreamedSVD:
    """The singular value decomposition of stacked chunks of rows, truncated to ``rank`` after each block.

    The decomposition so far, ``diag(s) Vᵀ``, is stacked on the next rows and decomposed anew. Nothing is lost
    as long as no more than ``rank`` singular values differ from zero. The rows are not centred: this is Levy
    and Lindenbaum, "Sequential Karhunen–Loeve basis extraction and its application to images", IEEE
    Transactions on Image Processing 9, 2000, with no forgetting, and Ross et al., "Incremental learning for
    robust visual tracking", International Journal of Computer Vision 77, 2008, without its mean update.
    Time O(rows · P · rank), memory O(P · rank), whatever the sizes of the chunks.

    The chunks ``(b, P)`` may be in any array library with the linear algebra of the Array API standard. No
    row at all is an EmptyData.

    Examples
    --------
    >>> import numpy as np
    >>> J = np.diag([3.0, 2.0, 1.0])
    >>> svd = streaming_svd([J[:1], J[1:]], rank=2)
    >>> svd.values.round(6).tolist(), round(svd.discarded, 6)
    ([3.0, 2.0], 1.0)
    """
    check_integer("rank", rank, 1, expected="a positive integer")
    values, vectors = np.zeros(0), None
    rows, discarded = 0, 0.0
    for block in _blocks(chunks, rank):
        rows += block.shape[0]
        stacked = block.T
        if vectors is not None:
            weighted = vectors * algebra.coefficients(values, vectors)
            stacked = algebra.concatenate([weighted, stacked])
        xp = array_api_compat.array_namespace(stacked)
        # The triangle is small whatever P: its SVD costs next to nothing, on any device.
        basis, triangle = xp.linalg.qr(stacked)
        left, singular, _ = xp.linalg.svd(triangle, full_matrices=False)
        found = np.asarray(algebra.to_numpy(singular), dtype=np.float64)
        values, discarded = found[:rank], discarded + float(np.sum(found[rank:] ** 2))
        vectors = basis @ left[:, :rank]
    if vectors is None:
        raise EmptyData("There is no row to decompose; expected at least one.")
    return StreamedSVD(values, vectors, rows, discarded)


def _blocks(chunks: Iterable[Vector], rows: int) -> Iterator[Vector]:
    """The same rows in blocks of ``rows``: of less work than other sizes, when that many are kept."""
    waiting: list[Any] = []
    missing = rows
    for chunk in chunks:
        start = 0
        while start < chunk.shape[0]:
            piece = chunk[start : start + missing, :]
            start += piece.shape[0]
            missing -= piece.shape[0]
            waiting.append(piece)
            if missing == 0:
                yield _stack(waiting)
                waiting, missing = [], rows
    if waiting:
        yield _stack(waiting)


def _stack(pieces: list[Any]) -> Vector:
    xp = array_api_compat.array_namespace(pieces[0])
    return pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=0)
