"""Independent work on the workers of joblib: threads, processes, or a cluster under dask or ray."""

from __future__ import annotations

import operator
import pickle
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ihvp.digest import digest
from ihvp.errors import IhvpError, ParameterError, WorkerFailed
from ihvp.influence.blocks import Block
from ihvp.objective import Objective

Item = TypeVar("Item")


class Products(Protocol):
    """What gives the products of a block's training examples with some test points, ``(k, b)``."""

    @property
    def objective(self) -> Objective:
        """The loss of the training examples."""

    def __call__(self, block: Block) -> NDArray[Any]: ...


# What a worker has loaded last, by its name: the tiles of a block of test points share it.
_loaded: dict[str, Products] = {}


def over_workers(
    products: Products, wanted: Iterable[tuple[Block, Item]]
) -> Iterator[tuple[Block, Item, NDArray[Any]]]:
    """The products of each block, in their order, with what came beside it.

    They are computed here, unless the caller has chosen workers by ``joblib.parallel_config``.
    WorkerFailed says why one of these cannot do it.
    """
    if number_of_workers() == 1:
        for block, beside in wanted:
            yield block, beside, products(block)
        return
    joblib = sys.modules["joblib"]
    sent: deque[tuple[Block, Item]] = deque()
    backend = joblib.parallel.get_active_backend()[0]
    shared = getattr(backend, "supports_sharedmem", False)
    call = joblib.delayed(operator.call if shared else _elsewhere)
    known: tuple[Any, ...] = (products,)
    if not shared:
        name, packed, dtype = _packed(joblib, products)
        if hasattr(backend, "client"):
            # dask would give all work to the one worker that has this, until its queue is long.
            packed = backend.client.scatter(packed, broadcast=True, hash=False)
        known = name, packed, dtype

    def calls() -> Iterator[Any]:
        for block, beside in wanted:
            sent.append((Block(block.first, [], block.count), beside))
            yield call(*known, block)

    for found in results(joblib, calls()):
        yield *sent.popleft(), found


def results(joblib: Any, calls: Iterable[Any], n_jobs: int | None = None) -> Iterator[Any]:
    """What joblib's workers return, in the order of the calls; WorkerFailed where one cannot do its part."""
    try:
        yield from joblib.Parallel(n_jobs=n_jobs, return_as="generator")(calls)
    except (IhvpError, MemoryError):
        raise
    except Exception as error:
        raise WorkerFailed(f"{type(error).__name__}: {error}") from error


def number_of_workers() -> int:
    """As many as the caller has chosen by ``joblib.parallel_config``; 1 otherwise."""
    # Who has chosen some has imported it.
    joblib = sys.modules.get("joblib")
    return 1 if joblib is None else int(joblib.effective_n_jobs(None))


def require_precision(found: Objective, expected: str) -> None:
    """Refuse an objective that has become another one on its way to a process that is set otherwise."""
    if str(found.space.dtype) != expected:
        raise ParameterError(
            f"The parameters are {expected} and become {found.space.dtype} in another process; expected "
            "one precision. For JAX set the environment variable JAX_ENABLE_X64=1 before Python starts, "
            "which processes inherit, in place of jax.config.update. Or compute in one process."
        )


def _packed(joblib: Any, products: Products) -> tuple[str, NDArray[np.uint8], str]:
    # As bytes, once for all tiles: joblib lets processes of this machine share an array's memory.
    try:
        whole = pickle.dumps(joblib.wrap_non_picklable_objects(products, keep_wrapper=False))
    except Exception as error:
        raise WorkerFailed(f"{type(error).__name__}: {error}") from error
    return digest(whole).hex(), np.frombuffer(whole, np.uint8), str(products.objective.space.dtype)


def _elsewhere(name: str, packed: NDArray[np.uint8], dtype: str, block: Block) -> NDArray[Any]:
    if name not in _loaded:
        try:
            products: Products = pickle.loads(packed.data)
        except Exception as error:
            raise WorkerFailed(f"{type(error).__name__}: {error}") from error
        require_precision(products.objective, dtype)
        _loaded.clear()
        _loaded[name] = products
    return _loaded[name](block)
