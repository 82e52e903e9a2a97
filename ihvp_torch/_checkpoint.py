"""Re-entrant checkpoints: the parameters inside are reached by ``backward()`` and by no other derivative.

``checkpoint(..., use_reentrant=True)`` of torch runs its block without recording it, and calls
``backward()`` on it later. For ``torch.autograd.grad`` the parameters inside do not exist, and it says
nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.utils import checkpoint as torch_checkpoint

from ihvp.shared_context import Substitution


class _Recorded:
    """Stands in for ``CheckpointFunction``, in threads that have asked for it."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        if not recorded_checkpoints.here:
            return recorded_checkpoints.originals[0].apply(function, preserve_rng_state, *args)

        # The block runs again during a backward pass, which on a GPU is in a thread of autograd's own.
        @functools.wraps(function)
        def block(*tensors: Any) -> Any:
            with recorded_checkpoints():
                return function(*tensors)

        return torch_checkpoint.checkpoint(
            block, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )


# ``checkpoint`` looks its function up in its own module, wherever it was imported to.
recorded_checkpoints = Substitution((torch_checkpoint, "CheckpointFunction", _Recorded))
"""In this thread, re-entrant checkpoints are of the other kind: they record what they run."""
