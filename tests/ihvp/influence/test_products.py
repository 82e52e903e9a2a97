"""Inverse products that are kept."""

from __future__ import annotations

import errno
import json
import os
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import ihvp
from ihvp.errors import DataError, InvalidOption, PackageNotInstalled, StoreError
from ihvp.influence import blocks

from .conftest import CrossEntropy, Margin

ENDINGS = [".npz", ".safetensors"]


def test_they_are_the_solutions(small):
    products = small.influence().inverse_products(small.test, Margin(1))
    expected = np.linalg.solve(small.hessian, Margin(1).rows(small.weights, small.test).T).T
    assert np.abs(products.vectors - expected).max() <= 1e-9 * np.abs(expected).max()
    assert (len(products), products.residual <= 1e-12) == (5, True)


@pytest.mark.parametrize("ending", ENDINGS)
def test_saved_ones_score_other_examples_without_a_solve(small, tmp_path, monkeypatch, ending):
    path = tmp_path / f"products{ending}"
    small.influence().inverse_products(small.test).save(path)
    products = ihvp.InverseProducts.load(path)
    influence = small.influence()
    expected = influence.scores(small.test, small.test)
    monkeypatch.setattr(influence.inverse, "solve", lambda *args, **kwargs: pytest.fail("solved again"))
    monkeypatch.setattr(blocks, "NUMBERS", 12 * 2)
    scores = influence.scores(products, small.test)
    assert np.allclose(scores, expected, rtol=1e-12, atol=0)
    assert scores.residual == expected.residual
    assert_array_equal(influence.top_k(products, 3, small.test).indices, expected.top_k(3).indices)
    assert influence.group([1, 2], products).shape == (5,)


@pytest.mark.parametrize("ending", ENDINGS)
def test_float32_comes_back_as_it_was(tmp_path, ending):
    products = ihvp.InverseProducts(np.ones((2, 3), np.float32).T, 0.5, {"damping": "0.1"})
    products.save(tmp_path / f"p{ending}")
    loaded = ihvp.InverseProducts.load(str(tmp_path / f"p{ending}"))
    assert_array_equal(loaded.vectors, products.vectors, strict=True)
    assert (loaded.residual, loaded.model) == (0.5, {"damping": "0.1"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda p: p.influence(damping=0.1), "damping"),
        (lambda p: p.influence(curvature=ihvp.Hessian(p.objective(p.test))), "curvature"),
        (lambda p: p.influence(curvature=ihvp.LowRank.of(*np.linalg.eigh(p.hessian))), "curvature"),
        (lambda p: p.influence(tuple(a[::-1] for a in p.train)), "training data"),
        (lambda p: ihvp.Influence(p.objective(params=p.weights + 1e-9)), "parameters"),
        (lambda p: ihvp.Influence(p.objective(params=p.weights.astype(np.float32))), "parameters"),
        (lambda p: ihvp.Influence(p.objective(loss=CrossEntropy(0.06))), "loss"),
    ],
)
def test_those_of_another_model_are_refused_with_what_differs(small, change, named):
    products = small.influence().inverse_products(small.test)
    with pytest.raises(InvalidOption, match=f"another {named}"):
        change(small).scores(products)


def test_low_rank_curvatures_are_told_apart(small):
    values, vectors = np.linalg.eigh(small.hessian)
    one, other = (
        small.influence(curvature=ihvp.LowRank.of(values[-k:], vectors[:, -k:]), damping=0.1) for k in (3, 4)
    )
    products = one.inverse_products(small.test)
    one.scores(products)
    with pytest.raises(InvalidOption, match="another curvature"):
        other.scores(products)


def test_those_of_another_number_of_parameters_are_refused(small):
    wide = small.objective(
        (np.hstack([small.train[0]] * 2), small.train[1]), params=np.vstack([small.weights] * 2)
    )
    products = small.influence().inverse_products(small.test)
    with pytest.raises(InvalidOption, match="another parameters"):
        ihvp.Influence(wide).scores(products)


@pytest.mark.parametrize("vectors", [np.ones((5, 11)), np.ones((5, 13), np.float32), np.ones((0, 12))])
def test_those_of_another_width_are_refused(small, vectors):
    influence = small.influence()
    model = influence.inverse_products(small.test).model
    for question in (influence.scores, influence.on_inputs, lambda points: influence.top_k(points, 1)):
        with pytest.raises(InvalidOption, match="at least one row of 12 real numbers each"):
            question(ihvp.InverseProducts(vectors, 0.0, model))


@pytest.mark.parametrize("vectors", [np.ones(12), np.ones((1, 12), int), [[1.0]], np.ones((1, 2, 6)), None])
def test_what_is_no_matrix_of_numbers_is_refused(vectors):
    with pytest.raises(InvalidOption, match=r"(?s)vectors is .*; expected a numpy array \(n_test, P\)"):
        ihvp.InverseProducts(vectors, 0.0, {})


def test_a_version_tells_runs_apart(small):
    one, other = (ihvp.Influence(small.objective(), version=version) for version in ("1", "2"))
    products = one.inverse_products(small.test)
    one.scores(products)
    for stranger in (other, ihvp.Influence(small.objective())):
        with pytest.raises(InvalidOption, match="another version"):
            stranger.scores(products)
    with pytest.raises(InvalidOption, match="version is 1; expected a str, or None"):
        ihvp.Influence(small.objective(), version=1)


def test_they_have_their_loss_in_them(small):
    influence = small.influence()
    products = influence.inverse_products(small.test)
    with pytest.raises(InvalidOption, match=r"test_loss is .*; expected None with InverseProducts"):
        influence.scores(products, test_loss=Margin(0))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", [b"", b"something else", b"\x00" * 100])
def test_a_file_of_something_else_is_refused(tmp_path, ending, content):
    path = tmp_path / f"p{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="holds no inverse products"):
        ihvp.InverseProducts.load(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_torn_file_is_refused(small, tmp_path, ending):
    path = tmp_path / f"p{ending}"
    small.influence().inverse_products(small.test).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="holds no inverse products"):
        ihvp.InverseProducts.load(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_flipped_byte_goes_unnoticed(tmp_path, ending):
    path, rng = tmp_path / f"p{ending}", np.random.default_rng(0)
    ihvp.InverseProducts(rng.normal(size=(2, 3)), 1e-7, {"damping": "0.1"}).save(path)
    content = path.read_bytes()
    for place, bit in zip(range(len(content)), rng.integers(8, size=len(content)), strict=True):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        with pytest.raises(DataError, match="its checksum is another"):
            ihvp.InverseProducts.load(path)


@pytest.mark.parametrize("model", [b"[1]", b"3", b"null", b"not JSON"])
def test_a_file_whose_model_is_no_object_is_refused(tmp_path, monkeypatch, model):
    path = tmp_path / "p.npz"
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda value: model.decode())
        ihvp.InverseProducts(np.eye(2), 0.0, {}).save(path)
    with pytest.raises(DataError, match="holds no inverse products"):
        ihvp.InverseProducts.load(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_programs_read_the_files_too(tmp_path, ending):
    path = tmp_path / f"p{ending}"
    ihvp.InverseProducts(np.eye(2), 0.0, {}).save(path)
    if ending == ".npz":
        with np.load(path) as found:
            assert_array_equal(found["vectors"], np.eye(2))
    else:
        numpy = pytest.importorskip("safetensors.numpy")
        assert_array_equal(numpy.load_file(path)["vectors"], np.eye(2))


@pytest.mark.parametrize("path", [3, None, b"p.npz", ["p.npz"]])
def test_what_is_no_path_is_refused(path):
    products = ihvp.InverseProducts(np.eye(2), 0.0, {})
    for call in (products.save, ihvp.InverseProducts.load):
        with pytest.raises(InvalidOption, match=r"path is .*; expected a path, as a text or a pathlib.Path"):
            call(path)


def test_an_archive_of_other_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "p.npz", a=np.ones(2))
    with pytest.raises(DataError, match="holds no inverse products"):
        ihvp.InverseProducts.load(tmp_path / "p.npz")


def test_a_missing_file_is_the_usual_error(tmp_path):
    for ending in ENDINGS:
        with pytest.raises(FileNotFoundError):
            ihvp.InverseProducts.load(tmp_path / f"p{ending}")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_folder_that_is_not_there_is_named(tmp_path, ending):
    with pytest.raises(StoreError, match=r"Cannot write .*nodir.*Make the folder"):
        ihvp.InverseProducts(np.eye(2), 0.0, {}).save(tmp_path / "nodir" / f"p{ending}")


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_was_saved_stays_where_the_disk_is_full(tmp_path, monkeypatch, ending):
    path = tmp_path / f"p{ending}"
    ihvp.InverseProducts(np.eye(2), 0.5, {}).save(path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        ihvp.InverseProducts(np.eye(3), 0.5, {}).save(path)
    assert_array_equal(ihvp.InverseProducts.load(path).vectors, np.eye(2))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_another_ending_is_refused(tmp_path):
    products = ihvp.InverseProducts(np.eye(2), 0.0, {})
    with pytest.raises(InvalidOption, match=r"\.npz or \.safetensors"):
        products.save(tmp_path / "p.pt")
    with pytest.raises(InvalidOption, match=r"\.npz or \.safetensors"):
        ihvp.InverseProducts.load(tmp_path / "p.pt")


def test_missing_safetensors_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(PackageNotInstalled, match="safetensors"):
        ihvp.InverseProducts(np.eye(2), 0.0, {}).save(tmp_path / "p.safetensors")


def test_they_say_what_they_are():
    products = ihvp.InverseProducts(np.zeros((3, 1200)), 2e-7, {})
    assert repr(products) == "InverseProducts(test: 3, P = 1,200; residual 2.0e-07)"
