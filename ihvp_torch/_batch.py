"""Batches as the loss takes them: arrays on the parameters' device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ihvp.errors import DataError, EmptyData, UnequalBatches, describe
from ihvp_torch._tree import fill, leaves_of, map_leaves, named_leaves


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with numpy arrays, and tensors on another kind of device, as tensors on ``device``.

    Dtypes are kept. Leaves of any other kind stay as they are. Nothing is copied that is there already. A
    tensor that requires a gradient becomes a leaf of its own.
    """
    if isinstance(batch, tuple) and all(_is_there(leaf, device) for leaf in batch):
        return batch  # which a loss cannot change, as it may a dict

    def move(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
            # torch takes neither read-only nor reversed arrays, nor foreign byte orders.
            native = np.require(leaf, dtype=leaf.dtype.newbyteorder("="), requirements=["C", "W"])
            return torch.from_numpy(native).to(device)
        if isinstance(leaf, Tensor):
            # Tensors made in inference mode cannot be saved for a backward pass.
            kept = leaf.clone() if leaf.is_inference() else leaf
            if kept.requires_grad:
                # A loss may differentiate by its data; what that was computed from is not its business.
                kept = kept.detach().requires_grad_()
            # Frozen parts of a module may be on further devices of one kind, and their data with them.
            there = kept.device.type == device.type != "cpu"
            return kept if there or kept.device == device else _moved(kept, device)
        return leaf.to(device) if isinstance(leaf, PackedSequence) else leaf

    return map_leaves(move, batch)


def _is_there(leaf: Any, device: torch.device) -> bool:
    return type(leaf) is Tensor and leaf.device == device and not (leaf.requires_grad or leaf.is_inference())


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().to(device).requires_grad_(tensor.requires_grad)


class Examples:
    """The examples of a batch: its tensors are cut along their first axis.

    Every tensor with at least one axis has the examples along the first. Other leaves belong to all.
    """

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self._leaves = leaves_of(batch)
        self._stacked = [isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in self._leaves]
        sizes = {
            name: leaf.shape[0]
            for (name, leaf), stacked in zip(named_leaves(batch), self._stacked, strict=True)
            if stacked
        }
        if not sizes:
            raise DataError(
                f"The batch is {describe(batch)} and holds no array with an axis of examples; expected "
                "arrays whose first axis counts the examples."
            )
        if len(set(sizes.values())) > 1:
            raise UnequalBatches(
                f"The arrays of one batch have first axes of different lengths: {sizes}; expected one "
                "number of examples. Keep arrays that are not per example out of the batch."
            )
        self.tensors = [leaf for leaf, stacked in zip(self._leaves, self._stacked, strict=True) if stacked]
        if len(self) == 0:
            raise EmptyData("The batch holds no example; expected at least one.")

    def __len__(self) -> int:
        return int(self.tensors[0].shape[0])

    def assemble(self, tensors: list[Tensor]) -> Any:
        """The batch with ``tensors`` in the place of its own."""
        following = iter(tensors)
        return fill(
            self._batch,
            (
                next(following) if stacked else leaf
                for leaf, stacked in zip(self._leaves, self._stacked, strict=True)
            ),
        )
