"""Objectives at the parameters of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ihvp.backend import SupportsCheckpoints
from ihvp.errors import InvalidOption, MissingCapability, MissingFile
from ihvp.objective import Objective


def at_checkpoints(objective: Objective, checkpoints: Sequence[Any]) -> list[Objective]:
    """The objective at each of some checkpoints: parameters in its own form, or what its backend restores.

    InvalidOption says that there is none; ParameterError, that one is of another architecture; MissingFile or
    DataError, that a file is not there, or holds no parameters, or pickled code.
    """
    if not isinstance(checkpoints, (list, tuple)) or not checkpoints:
        expected = "a list of parameters, state dictionaries or files, at least one"
        raise InvalidOption("checkpoints", checkpoints, expected)
    return [objective.at(_restored(objective, one)) for one in checkpoints]


def _restored(objective: Objective, checkpoint: Any) -> Any:
    is_file, backend = isinstance(checkpoint, (str, PathLike)), objective.backend
    if is_file:
        checkpoint = Path(checkpoint)
        if not checkpoint.exists():
            raise MissingFile(f"There is no checkpoint {checkpoint}; expected a file or a folder.")
    if isinstance(backend, SupportsCheckpoints):
        return backend.restore(checkpoint, objective.params)
    if is_file:
        advice = "Read the file, and pass the parameters."
        raise MissingCapability(type(backend).__name__, "checkpoints", advice)
    return checkpoint
