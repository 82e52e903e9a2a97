"""Files of named arrays that no framework owns, as other programs write them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ihvp.errors import DataError, IhvpError, ParameterError
from ihvp.packages import required


def read_arrays(path: Path, others: Collection[str] = ()) -> dict[str, Any]:
    """The arrays of a file, ``.npz`` or ``.safetensors``, by name; none of them is unpickled.

    A DataError says that it is another kind of file, or damaged; ``others`` are endings that the caller
    reads.
    """
    if path.suffix not in (".npz", ".safetensors"):
        endings = ", ".join(sorted({".npz", ".safetensors", *others}))
        raise DataError(f"The checkpoint {path} ends in {path.suffix or 'nothing'}; expected {endings}.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        load = required(
            "safetensors.numpy", "reading .safetensors", "pip install 'ihvp[influence]'"
        ).load_file
        return dict(load(path))
    except IhvpError:
        raise
    except Exception as error:  # each format has exceptions of its own
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a file that holds no parameters, or code."""
    why = str(error).partition(". ")[0]  # torch goes on with how to run the code
    return DataError(
        f"The checkpoint {path} cannot be read ({type(error).__name__}: {why}); expected arrays and "
        "nothing else: pickled code is never run. Save the state dictionary alone, best as .safetensors."
    )


def require_same_arrays(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse, as ParameterError, a checkpoint whose arrays have other names or shapes than the parameters."""
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    if names:
        told = [
            f"{name} (found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')})"
            for name in names[:3]
        ]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ParameterError(
            f"The checkpoint is that of another architecture: {', '.join(told)}{more}. Pass checkpoints of "
            "the model that the objective has."
        )
