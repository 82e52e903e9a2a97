"""Weight normalisation, whose fused kernel takes the norm for a constant in its second derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PlainWeightNorm(TorchFunctionMode):  # type: ignore[misc]
    """In the block, ``g v / ‖v‖`` is computed by operations that have every derivative."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return (_plain if func is torch._weight_norm else func)(*args, **(kwargs or {}))


def _plain(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))
