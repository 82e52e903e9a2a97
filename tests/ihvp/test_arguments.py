"""What callers pass, in one place: kinds of numbers, texts, functions, and the errors of functions."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import ihvp
from ihvp import errors
from ihvp.arguments import check_choice, check_function, check_integer, check_number, check_seed, naming


@pytest.mark.parametrize("value", [True, np.True_, 1.0, "1", None, np.array(1), -1, 10**400, np.nan, 1j])
def test_only_integers_are_seeds(value):
    with pytest.raises(errors.InvalidOption, match=r"seed is .*; expected an integer ≥ 0"):
        check_seed(value)
    for function in (ihvp.trace, ihvp.diagonal, ihvp.spectral_density, ihvp.suggest_damping):
        with pytest.raises(errors.InvalidOption, match="seed"):
            function(ihvp.Dense(np.eye(12)), seed=value)


@pytest.mark.parametrize("value", [True, np.inf, "0.5", 10**400, np.array([0.5]), 1j, -1.0])
def test_only_finite_numbers_in_range_are_numbers(value):
    with pytest.raises(errors.InvalidOption, match="number ≥ 0"):
        check_number("damping", value, lambda number: number >= 0, "a number ≥ 0")


def test_numbers_of_numpy_are_numbers():
    check_integer("k", np.int8(3), 1, 3)
    check_number("tol", np.float16(0.5), lambda tol: tol < 1, "a number below 1")


@pytest.mark.parametrize("value", [np.array(["LA", "SA"]), ["LA"], None, "la", b"LA"])
def test_arrays_are_no_choice(value):
    with pytest.raises(errors.InvalidOption, match=r"which is .*; expected 'LA' or 'SA'"):
        check_choice("which", value, ("LA", "SA"))


def test_a_callback_takes_a_step():
    check_function("callback", print, takes=1)
    for wrong in (lambda: None, lambda a, b: None, 3):
        with pytest.raises(errors.InvalidOption, match="callback"):
            ihvp.solve(ihvp.Dense(np.eye(2)), np.ones(2), callback=wrong)


def test_long_and_failing_texts_are_told_by_their_types():
    class Hostile:
        def __repr__(self):
            raise RuntimeError("no text")

    text = str(errors.InvalidOption("k", Hostile(), "an integer"))
    assert "Hostile; expected an integer." in text
    assert str(errors.InvalidOption("k", np.zeros((99, 99)), "an integer")) == (
        "k is numpy.ndarray of shape (99, 99); expected an integer."
    )


def test_pandas_and_scikit_learn_are_told_what_to_pass():
    import pandas
    from sklearn.linear_model import LinearRegression

    with pytest.raises(errors.InvalidOption, match=r"pass its \.to_numpy\(\)"):
        ihvp.trace(pandas.DataFrame(np.eye(3)))
    with pytest.raises(errors.UndeterminedBackend, match=r"such as coef_.*grad="):
        ihvp.Objective(lambda w, b: 0.0, LinearRegression(), np.eye(3))
    with pytest.raises(errors.VectorError, match="to_numpy"):
        ihvp.Dense(np.eye(3)) @ pandas.Series(np.ones(3))


def test_the_loss_comes_first():
    class Model:
        def __call__(self, x):
            return x

    with pytest.raises(errors.ParameterError, match=r"Objective\(loss, params, data\)"):
        ihvp.Objective(Model(), lambda w, b: 0.0, np.eye(3))


@pytest.mark.parametrize("damping", [[1.0, [2.0, 3.0]], [[1.0, 2.0]], [1.0, None], [], {"a": 1.0}, {1.0}])
def test_a_damping_is_a_number_or_a_list_of_numbers(damping):
    with pytest.raises(errors.InvalidOption, match="damping"):
        ihvp.solve(ihvp.Dense(np.eye(2)), np.ones(2), damping)


def test_a_damping_that_the_dtype_does_not_hold_is_refused():
    A = ihvp.Dense(np.eye(2, dtype=np.float32))
    with pytest.raises(errors.InvalidOption, match=r"damping is 1e\+300; expected at most 3\.4e\+38"):
        ihvp.solve(A, np.ones(2, dtype=np.float32), 1e300)


@pytest.mark.parametrize("special", [np.matrix, np.ma.asarray])
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_arrays_with_operations_of_their_own_are_refused(special):
    with pytest.raises(errors.VectorError, match="square 2-d array"):
        ihvp.Dense(special(np.eye(2)))
    with pytest.raises(errors.VectorError, match=r"numpy\.asarray\(v\)"):
        ihvp.Dense(np.eye(2)) @ special(np.ones((2, 1)))


CAUSES = [KeyError("a"), AttributeError("b"), OSError(2, "c"), UnicodeDecodeError("utf8", b"d", 0, 1, "e")]


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: type(cause).__name__)
@pytest.mark.parametrize("kind", [errors.FunctionFailed, errors.LossFailed])
def test_what_a_function_raises_is_named_and_stays_of_its_kind(cause, kind):
    with pytest.raises(type(cause)) as caught, naming(kind, "The gradient"):
        raise cause
    assert isinstance(caught.value, kind)
    assert caught.value.__cause__ is cause
    assert str(caught.value).startswith(f"The gradient failed with {type(cause).__name__}: {cause}")
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert type(again) is type(caught.value)
        assert str(again) == str(caught.value)


@pytest.mark.parametrize("error", [errors.EmptyData("x"), MemoryError(), KeyboardInterrupt()])
def test_named_errors_lack_of_memory_and_interrupts_pass(error):
    with pytest.raises(type(error)) as caught, naming(errors.LossFailed, "The gradient"):
        raise error
    assert caught.value is error


def test_data_that_fails_is_not_blamed_on_the_loss():
    class Broken:
        def __iter__(self):
            yield np.ones((2, 1))
            raise KeyError("row 17")

    objective = ihvp.Objective(params=np.ones(1), data=Broken(), grad=lambda w, x: w)
    with pytest.raises(errors.DataError, match="gave no batch but KeyError: 'row 17'"):
        objective.gradient()
