"""A linearised gradient that notices when the parameters change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ihvp_torch._compile import CompiledCurvature
from ihvp_torch._derivatives import recording
from ihvp_torch._fallback import FirstThatWorks
from ihvp_torch._graph import storage
from ihvp_torch._parameters import live_tensors
from ihvp_torch._ski_rental import EagerFirst
from ihvp_torch._tree import leaves_of
from ihvp_torch._vector import multiply


class Linearization:
    """The map ``v ↦ ∇² loss(params, batch) · v`` that keeps the gradient's graph.

    ``prepare()`` gives the product at the parameters' present values, its shared work done. A parameter that
    was replaced or changed in place makes the next product prepare again; writing through ``tensor.data``
    escapes torch's own bookkeeping and is not noticed. The batch is the caller's own, which is in memory
    anyway.
    """

    def __init__(
        self, prepare: Callable[[], FirstThatWorks | CompiledCurvature | EagerFirst], params: Any, batch: Any
    ) -> None:
        self._prepare, self._params, self._batch = prepare, params, batch
        # A kept graph is not for two threads at once: checkpoints and hooks of the user's may write to it.
        self._lock = threading.RLock()
        self._renew()

    @property
    def nbytes(self) -> int:
        """The memory that stays in use because of this map: without the parameters and the batch."""
        held = (tensor for tensor in self._product.held() if tensor.layout is torch.strided)
        sizes = {storage(tensor): tensor.untyped_storage().nbytes() for tensor in held}
        for leaf in (*live_tensors(self._params), *leaves_of(self._batch)):
            sizes.pop(storage(leaf), None)
        return sum(sizes.values())

    @recording
    def __call__(self, v: Tensor) -> Tensor:
        with self._lock:
            if _signature(self._params) != self._seen:
                self._renew()
            return multiply(self._product, v, last=False)

    def _renew(self) -> None:
        seen, product = _signature(self._params), self._prepare()
        product.prepare()
        self._seen, self._product = seen, product


def _signature(params: Any) -> list[Any]:
    # The old storage stays alive in the graph, so that no new one can have its address. Tensors made in
    # inference mode count no versions: an object that equals no other says "changed".
    return [
        object() if tensor.is_inference() else (tensor.data_ptr(), tensor._version)
        for tensor in live_tensors(params)
    ]
