"""The errors as a family."""

from __future__ import annotations

import inspect

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
