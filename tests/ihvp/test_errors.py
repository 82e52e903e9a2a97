"""The errors as a family."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle

import numpy as np
import pytest

import ihvp
from ihvp import errors

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == "ihvp.errors"]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_is_an_ihvp_error(cls):
    assert issubclass(cls, ihvp.IhvpError)


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.UnknownBackend, LookupError),
        (errors.BackendNotInstalled, ImportError),
        (errors.BrokenBackend, RuntimeError),
        (errors.MixedFrameworks, TypeError),
        (errors.InvalidOption, ValueError),
        (errors.ParameterError, TypeError),
        (errors.EmptyData, ValueError),
        (errors.NotReiterable, TypeError),
        (errors.WrongShape, ValueError),
        (errors.WrongDtype, TypeError),
        (errors.LossNotScalar, TypeError),
        (errors.NonFinite, ArithmeticError),
        (errors.SolverError, ArithmeticError),
    ],
)
def test_errors_are_caught_as_the_builtin_that_a_caller_expects(cls, builtin):
    assert issubclass(cls, builtin)


def test_the_three_ways_of_missing_a_backend_are_distinct():
    three = [errors.UnknownBackend, errors.BackendNotInstalled, errors.BrokenBackend]
    assert not any(issubclass(a, b) for a in three for b in three if a is not b)


def test_unknown_backend_lists_the_known_ones_sorted():
    error = errors.UnknownBackend("mxnet", ["torch", "jax"])
    assert str(error) == "No backend is called 'mxnet'. Registered backends: jax, torch."


def test_missing_framework_says_how_to_install_it():
    error = errors.BackendNotInstalled("jax", "jax", "pip install 'ihvp[jax]'")
    assert str(error).endswith("Install it with: pip install 'ihvp[jax]'")


def test_non_finite_names_the_batch():
    error = errors.NonFinite("The gradient", 3)
    assert error.batch == 3
    assert "on batch 3" in str(error)


def test_wrong_shape_gives_both_accepted_shapes():
    assert "v has shape (4,); expected (3,) for a vector or (3, k)" in str(errors.WrongShape((4,), 3))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (3, "int"),
        (np.zeros((2, 0)), "numpy.ndarray of shape (2, 0)"),
        (np.float32(1), "numpy.float32 of shape ()"),
        ([1], "list"),
        ((i for i in ()), "generator"),
    ],
)
def test_describe_names_the_type_and_shape(value, text):
    assert errors.describe(value) == text


def an_error(cls):
    """One of the class, made from facts of the kinds that it asks for."""
    solution = ihvp.Solution(np.ones(2), False, 0.5, 3, 4, "because", np.ones(4))
    by_name = {"solution": solution, "eigenpairs": None, "cause": ValueError("x"), "differing": {"a": (1, 2)}}
    by_name["parts"] = {"a": (1.0, [0])}
    by_type = {"Iterable[str]": ["b", "a"], "Sequence[int]": (3, 4), "float": 0.5, "int": 7, "int | None": 7}
    parameters = [
        parameter
        for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if cls.__init__ in (Exception.__init__, *(base.__init__ for base in cls.__mro__[-4:])):
        return cls("the text")
    return cls(*[by_name.get(p.name, by_type.get(p.annotation, f"{p.name}!")) for p in parameters])


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "again",
    [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deep"],
)
def test_errors_are_the_same_in_another_process_and_as_copies(cls, again):
    error = an_error(cls)
    error.add_note("a note")
    found = again(error)
    assert type(found) is cls
    assert str(found) == str(error)
    assert repr(sorted(vars(found).items())) == repr(sorted(vars(error).items()))
    assert found.args == error.args


def _fail(_):
    ihvp.solve(ihvp.Dense(np.diag([1.0, -1.0])), np.ones(2))


def test_an_error_of_a_worker_reaches_the_pool_with_its_solution():
    with (
        multiprocessing.get_context("spawn").Pool(1) as pool,
        pytest.raises(errors.IndefiniteCurvature, match="curvature") as caught,
    ):
        pool.map_async(_fail, [0]).get(timeout=60)
    assert caught.value.solution.x.shape == (2,)
    assert caught.value.suggested_damping > 1
