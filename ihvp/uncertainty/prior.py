"""Normal priors of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import check_number
from ihvp.errors import InvalidOption
from ihvp.objective import Objective
from ihvp.objective.restricted import belongs


class Prior:
    """Independent normals with the mean 0, of one precision for all parameters or one for each of some parts.

    Attributes
    ----------
    objective : Objective
    precisions : dict of str to float
        By part; a single one is called ``"all"``.
    parts : dict of str to list of slice
        The entries of each.
    is_named : bool
        Whether it has parts.
    entries : ndarray (P,)
        The precision of each entry.

    Parameters
    ----------
    objective : Objective
    precision : float, or mapping of str to float
        Keys are names of parameters, or of layers or modules, which stand for all that they have.

    Raises
    ------
    InvalidOption
        A precision is not above 0, or a parameter has none or two.
    """

    def __init__(self, objective: Objective, precision: float | Mapping[str, float]) -> None:
        self.objective, self.is_named = objective, isinstance(precision, Mapping)
        named = self.is_named
        given: Mapping[str, Any] = precision if isinstance(precision, Mapping) else {"all": precision}
        self.entries = np.zeros(objective.num_params)
        self.parts: dict[str, list[slice]] = {"all": [slice(0, objective.num_params)]}
        if named:
            blocks = objective.blocks
            self.parts = {
                name: [place for key, place in blocks.items() if belongs(key, name)] for name in given
            }
        for name, value in given.items():
            option = f"prior_precision[{name!r}]" if named else "prior_precision"
            check_number(option, value, lambda number: number > 0, "a finite number > 0, one over a variance")
            if not self.parts[name]:
                raise InvalidOption("prior_precision", name, f"names among {', '.join(blocks)}")
            for place in self.parts[name]:
                if self.entries[place].any():
                    raise InvalidOption("prior_precision", dict(given), f"one for {name}, not two")
                self.entries[place] = value
        if missing := [
            name for name, place in (blocks if named else {}).items() if not self.entries[place].all()
        ]:
            raise InvalidOption("prior_precision", dict(given), f"one for {', '.join(missing)}, too")
        self.precisions = {name: float(value) for name, value in given.items()}

    @property
    def is_scalar(self) -> bool:
        """Whether all parameters have one precision."""
        return bool(self.entries.min() == self.entries.max())

    def sums(self, values: NDArray[np.float64]) -> dict[str, float]:
        """The sum of ``values (P,)`` over the entries of each part."""
        return {
            name: float(sum(values[place].sum() for place in places)) for name, places in self.parts.items()
        }
