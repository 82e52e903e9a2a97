"""Lanczos where its basis is smaller than the space, and the matrix itself where that costs less."""

from __future__ import annotations

from collections.abc import Callable

from ihvp.eigen.approximation import Approximation, Products
from ihvp.eigen.dense import dense_eigenpairs
from ihvp.eigen.lanczos import Lanczos, Search
from ihvp.eigen.wanted import Wanted
from ihvp.memory import free_memory, require_memory
from ihvp.progress import Monitor, Step

# Vectors of length P beside the basis and the result: the next direction, the product, what updates take.
_VECTORS = 4
# A decomposition of a matrix of up to this size takes no more than some seconds.
_DECOMPOSED = 1 << 12


def searched(
    product: Products,
    wanted: Wanted,
    search: Search,
    callback: Callable[[Step], object] | None,
    progress: bool | None,
) -> Approximation:
    """The wanted pairs, by a method that the sizes and the spectrum choose.

    A dense decomposition takes P products, whatever the spectrum. It is made at once where a basis would span
    the space, and after P/2 products of Lanczos' method where the matrix is small.
    """
    space, capacity = product.space, search.capacity
    if capacity >= space.size:
        return dense_eigenpairs(product, wanted)
    numbers = (capacity + 3 * wanted.k + _VECTORS) * space.size
    what = f"A Lanczos basis of {capacity} vectors of P = {space.size:,} with k = {wanted.k} results"
    require_memory(space, numbers, space.itemsize, what, "Pass a smaller ncv or k.")
    iteration = Lanczos(product, wanted, search)
    affordable = product.count + space.size // 2 if _is_decomposed(product) else None
    with Monitor("Lanczos", callback, progress, space.processes.rank) as monitor:
        found = iteration.run(affordable, monitor)
    if affordable is None or found.complete or product.count < affordable:
        return found
    del iteration
    return dense_eigenpairs(product, wanted)


def _is_decomposed(product: Products) -> bool:
    free = free_memory(product.space)
    # The matrix while it is made, and its eigenvectors with their workspace.
    fits = free is None or 2 * product.operator.dense_nbytes <= free
    return product.space.size <= _DECOMPOSED and bool(product.space.processes.agreed(fits))
