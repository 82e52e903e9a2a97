"""Kronecker factors in a file: whole, or as far as an interrupted run has summed them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from ihvp import algebra
from ihvp.array_store import load_arrays, not_of_this_kind, save_arrays
from ihvp.backend import Vector
from ihvp.errors import StoreMismatch
from ihvp.kronecker.blocks import Block, pack, unpack
from ihvp.space import VectorSpace

Sums: TypeAlias = dict[str, dict[str, Vector]]
"""What is summed over the data: for each kind of moment that of each layer or parameter, by its name."""

# Writing what was summed takes up to such a part of the time.
_PART = 0.1


class FactorFile:
    """Where factors are kept; what is written is whole or not there.

    ``depends_on`` has names and fingerprints of what they depend on, and ``writer`` is what writes such
    files, for errors. By each method that reads, StoreMismatch says that the file is that of something else.
    Other errors are those of :mod:`ihvp.array_store`.
    """

    def __init__(self, path: str | Path, writer: str, depends_on: Mapping[str, str]) -> None:
        self._path, self._writer, self._depends_on = path, writer, depends_on
        self._due = 0.0

    def is_finished(self) -> bool:
        """Whether it holds factors; not if it is missing, or holds the sums of an interrupted run."""
        return Path(self._path).exists() and "blocks" in self._read()[1]

    def load(self, space: VectorSpace) -> tuple[list[Block], dict[str, str]]:
        """The blocks, and why layers were left out."""
        arrays, about = self._read()
        try:
            return unpack(json.loads(about["blocks"]), arrays, space), json.loads(about["refused"])
        except Exception as error:  # arrays of something else
            raise not_of_this_kind(self._path, _KIND, self._writer, error) from error

    def save(self, blocks: Sequence[Block], refused: Mapping[str, str]) -> None:
        """Write them, in the place of what was summed."""
        arrays, about = pack(blocks)
        save_arrays(
            self._path, arrays, {**self._depends_on, "blocks": about, "refused": json.dumps(dict(refused))}
        )

    def resume(self, number: int, sums: Sums) -> int:
        """How many pieces of pass ``number`` are summed, and put into the sums; all of one that is over."""
        if not Path(self._path).exists():
            return 0
        arrays, about = self._read()
        found, done = json.loads(about["pass"]), json.loads(about["pieces"])
        if found < number:
            return 0
        for kind, terms in sums.items():
            for place, (name, term) in enumerate(terms.items()):
                terms[name] = algebra.as_like(arrays[f"{kind}.{place}"], term)
        return int(done) if found == number else _ALL

    def keep(self, number: int, done: int, sums: Sums) -> None:
        """Write the sums after so many pieces of pass ``number``, unless that was done just now."""
        start = time.monotonic()
        if start < self._due:
            return
        arrays = {
            f"{kind}.{place}": algebra.to_numpy(term)
            for kind, terms in sums.items()
            for place, term in enumerate(terms.values())
        }
        save_arrays(self._path, arrays, {**self._depends_on, "pass": str(number), "pieces": str(done)})
        stop = time.monotonic()
        self._due = stop + (stop - start) / _PART

    def _read(self) -> tuple[dict[str, Vector], dict[str, str]]:
        arrays, about = load_arrays(self._path, _KIND, self._writer)
        if "refused" not in about and "pass" not in about:
            raise not_of_this_kind(self._path, _KIND, self._writer, KeyError("blocks"))
        differing = {
            name: (about.get(name), expected)
            for name, expected in self._depends_on.items()
            if about.get(name) != expected
        }
        if differing:
            raise StoreMismatch(str(self._path), differing)
        return arrays, about


_KIND = "Kronecker factors"
# More pieces than any data has.
_ALL = 1 << 62
