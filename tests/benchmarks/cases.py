"""All cases, in the order of the table; each has the name of its module."""

from __future__ import annotations

from tests.benchmarks import (
    blocks,
    choices,
    eigenpairs,
    factors,
    indices,
    influence,
    language,
    lissa,
    memory,
    outside,
    per_example,
    posteriors,
    premises,
    processes,
    products,
    scaling,
    solves,
    structured,
    users,
)
from tests.benchmarks.rows import Case

_MODULES = (
    products,
    premises,
    blocks,
    solves,
    choices,
    lissa,
    eigenpairs,
    per_example,
    influence,
    indices,
    structured,
    factors,
    posteriors,
    language,
    outside,
    processes,
    scaling,
    memory,
    users,
)

CASES: dict[str, Case] = {module.CASE.name: module.CASE for module in _MODULES}
