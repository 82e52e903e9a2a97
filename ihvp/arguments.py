"""What callers pass, checked before any work: one rule, and one text, for each kind of argument.

What is refused is an :class:`~ihvp.errors.InvalidOption`, with the name of the option.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.errors import FunctionFailed, IhvpError, InvalidOption


def is_integer(value: Any) -> bool:
    """Whether this is an integer; True and False are none.

    >>> is_integer(3), is_integer(True), is_integer(3.0)
    (True, False, False)
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether this is a finite real number; True and False are none.

    >>> is_number(0.5), is_number(float("nan")), is_number("0.5")
    (True, False, False)
    """
    if not (is_integer(value) or isinstance(value, (float, np.floating))):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def check_integer(
    option: str, value: Any, least: int, most: int | None = None, expected: str = "", *, none: bool = False
) -> None:
    """Refuse what is no integer from ``least`` to ``most``, nor None where that is allowed.

    ``expected`` is what the error says in place of "an integer ≥ …".

    >>> check_integer("seed", 1.5, 0)
    Traceback (most recent call last):
    ihvp.errors.InvalidOption: seed is 1.5; expected an integer ≥ 0.
    """
    if value is None and none:
        return
    if not (is_integer(value) and least <= value <= (sys.maxsize if most is None else most)):
        bound = f"≥ {least}" if most is None else f"from {least} to {most}"
        raise InvalidOption(option, value, expected or f"an integer {bound}" + (", or None" if none else ""))


def check_seed(seed: Any) -> None:
    """Refuse what is no seed of random numbers: an integer ≥ 0."""
    check_integer("seed", seed, 0)


def check_number(option: str, value: Any, within: Callable[[Any], bool], expected: str) -> None:
    """Refuse what is no finite number for which ``within`` holds.

    >>> check_number("tol", -1.0, lambda tol: 0 < tol < 1, "a number between 0 and 1")
    Traceback (most recent call last):
    ihvp.errors.InvalidOption: tol is -1.0; expected a number between 0 and 1.
    """
    if not (is_number(value) and within(value)):
        raise InvalidOption(option, value, expected)


def check_damping(damping: Any) -> None:
    """Refuse what is no finite number ≥ 0."""
    expected = "a finite number ≥ 0, which is added to the diagonal"
    check_number("damping", damping, lambda number: number >= 0, expected)


def check_choice(option: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse what is none of the names.

    >>> check_choice("which", "LI", ("LA", "SA", "LM"))
    Traceback (most recent call last):
    ihvp.errors.InvalidOption: which is 'LI'; expected 'LA', 'SA' or 'LM'.
    """
    *others, last = map(repr, choices)
    # Arrays compare entry by entry: only a text is looked up.
    if not isinstance(value, str) or repr(value) not in (*others, last):
        raise InvalidOption(option, value, f"{', '.join(others)} or {last}")


def check_flag(option: str, value: Any, *, none: bool = False) -> None:
    """Refuse what is neither True nor False, nor None where that is allowed."""
    if not (isinstance(value, (bool, np.bool_)) or (none and value is None)):
        raise InvalidOption(option, value, "True, False or None" if none else "True or False")


def check_function(
    option: str, value: Any, expected: str = "a function, or None", takes: int | None = None
) -> None:
    """Refuse what is neither a function, which ``takes`` so many arguments, nor None."""
    if value is not None and not (callable(value) and (takes is None or _takes(value, takes))):
        raise InvalidOption(option, value, expected)


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtin functions may not tell
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


@contextmanager
def naming(kind: type[FunctionFailed], what: str) -> Iterator[None]:
    """Turn what the caller's functions and their framework raise into an error of ``kind``, chained.

    Errors of memory that ran out stay as they are, for callers that go on with less.
    """
    try:
        yield
    except (IhvpError, MemoryError):
        raise
    except Exception as error:
        if "OutOfMemory" in type(error).__name__:
            raise
        raise kind.of(what, error) from error


def as_array(
    option: str, value: Any, kinds: str = "fiu", expected: str = "real numbers, as an array"
) -> NDArray[Any]:
    """An array of one of the ``kinds`` of numpy's dtypes, of integers and floating numbers by default.

    >>> as_array("values", [3, 2.5])
    array([3. , 2.5])
    >>> as_array("values", [1.0, [2.0]])
    Traceback (most recent call last):
    ihvp.errors.InvalidOption: values is [1.0, [2.0]]; expected real numbers, as an array.
    """
    try:
        array = np.asarray(value)
    except Exception as error:  # lists of unequal lengths, and whatever an object makes of itself
        raise InvalidOption(option, value, expected) from error
    if array.dtype.kind not in kinds:
        raise InvalidOption(option, value, expected)
    return array


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of an array; None of what has none.

    >>> shape_of(np.zeros((2, 3))), shape_of(np)
    ((2, 3), None)
    """
    shape = getattr(value, "shape", None)
    try:
        return None if shape is None else tuple(shape)
    except (TypeError, ValueError):  # a function of this name, or a shape that is not known yet
        return None


def is_special(value: Any) -> bool:
    """Whether this is an array of numpy whose operations are not those of other arrays."""
    return isinstance(value, (np.matrix, np.ma.MaskedArray))


def check_path(option: str, value: Any) -> None:
    """Refuse what is no path of a file or folder."""
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip():
        raise InvalidOption(option, value, "a path, as a text or a pathlib.Path")


def check_instance(option: str, value: Any, kind: type[Any], expected: str) -> None:
    """Refuse what is no object of a class."""
    if not isinstance(value, kind):
        raise InvalidOption(option, value, expected)
