"""A pytest plugin: torch makes what a test makes on the CUDA device, as JAX does by itself."""

from __future__ import annotations

import sys

if "torch" in sys.argv:
    import torch

    torch.set_default_device("cuda")
