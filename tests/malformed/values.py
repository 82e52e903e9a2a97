"""Values that no argument of the library means, each made anew when it is asked for."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np


class Opaque:
    """An object of somebody's own class."""


class Stopped(Exception):
    """What a function of the caller's raises."""


class Hostile:
    """One whose text and whose comparisons fail."""

    def __repr__(self):
        raise RuntimeError("no text")

    def __eq__(self, other):
        raise RuntimeError("no comparison")

    __hash__ = None


def _matrix():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.matrix([[1.0, 2.0], [3.0, 4.0]])


def _frame(kind):
    import pandas

    return {
        "frame": lambda: pandas.DataFrame({"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 0.0]}),
        "series": lambda: pandas.Series([1.0, 2.0, 3.0]),
        "index": lambda: pandas.Index([0, 1, 2]),
        "missing": lambda: pandas.NA,
    }[kind]()


def _estimator(fitted):
    from sklearn.linear_model import LinearRegression

    return LinearRegression().fit(np.eye(3), np.ones(3)) if fitted else LinearRegression()


VALUES = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "-1": lambda: -1,
    "10**400": lambda: 10**400,
    "1.5": lambda: 1.5,
    "-0.5": lambda: -0.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "1e-320": lambda: 1e-320,
    "1e300": lambda: 1e300,
    "1j": lambda: 1j,
    "fraction": lambda: Fraction(1, 2),
    "numpy bool": lambda: np.True_,
    "numpy int": lambda: np.int8(3),
    "numpy half": lambda: np.float16(0.5),
    "text": lambda: "auto",
    "empty text": lambda: "",
    "bytes": lambda: b"CG",
    "list": lambda: [1.0, 2.0, 3.0],
    "empty list": list,
    "ragged list": lambda: [1.0, [2.0, 3.0]],
    "list of None": lambda: [None, None],
    "list of texts": lambda: ["a", "b"],
    "tuple": lambda: (1.0, 2.0),
    "empty tuple": lambda: (),
    "set": lambda: {1, 2, 3},
    "empty set": lambda: set(),
    "dict": lambda: {"x": 1.0},
    "empty dict": dict,
    "dict of arrays": lambda: {"x": np.ones((2, 3)), "y": np.ones(3)},
    "generator": lambda: (number for number in range(3)),
    "range": lambda: range(3),
    "slice": lambda: slice(0, 2),
    "ellipsis": lambda: ...,
    "function": lambda: lambda *arguments, **options: 1.0,
    "function of nothing": lambda: lambda: None,
    "failing function": lambda: _fails,
    "class": lambda: Opaque,
    "object": Opaque,
    "hostile object": Hostile,
    "module": lambda: np,
    "exception": lambda: ValueError("no"),
    "path": lambda: Path("no/such/place"),
    "complex array": lambda: np.ones(3, dtype=complex),
    "integer array": lambda: np.arange(3),
    "bool array": lambda: np.array([True, False, True]),
    "object array": lambda: np.array([1.0, None, "x"], dtype=object),
    "array of texts": lambda: np.array(["a", "b", "c"]),
    "array of dates": lambda: np.array(["2020-01-01"] * 3, dtype="datetime64[D]"),
    "array of records": lambda: np.zeros(3, dtype=[("x", float)]),
    "0-d array": lambda: np.array(1.5),
    "empty array": lambda: np.zeros(0),
    "empty block": lambda: np.zeros((3, 0)),
    "wrong length": lambda: np.ones(5),
    "3-d array": lambda: np.ones((3, 1, 1)),
    "half array": lambda: np.ones(3, dtype=np.float16),
    "single array": lambda: np.ones(3, dtype=np.float32),
    "long double array": lambda: np.ones(3, dtype=np.longdouble),
    "swapped bytes": lambda: np.ones(3).astype(">f8" if np.little_endian else "<f8"),
    "array of nan": lambda: np.full(3, np.nan),
    "huge array": lambda: np.full(3, 1e300),
    "denormal array": lambda: np.full(3, 1e-320),
    "masked array": lambda: np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0]),
    "matrix": _matrix,
    "square array": lambda: np.ones((3, 3)),
    "rectangle": lambda: np.ones((3, 2)),
    "pandas frame": lambda: _frame("frame"),
    "pandas series": lambda: _frame("series"),
    "pandas index": lambda: _frame("index"),
    "pandas NA": lambda: _frame("missing"),
    "estimator": lambda: _estimator(False),
    "fitted estimator": lambda: _estimator(True),
    "estimator class": lambda: type(_estimator(False)),
}


def _fails(*arguments, **options):
    raise Stopped("this function fails")
