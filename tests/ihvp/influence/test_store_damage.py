"""Stores whose files were changed by somebody: named, or computed again; never other numbers."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from contextlib import nullcontext

import numpy as np
import pytest

import ihvp
from ihvp.errors import IhvpError, InvalidOption, StoreError, StoreMismatch
from ihvp.influence import StoreDamaged, blocks
from ihvp.influence.store import Store, _sealed

FLIPS = int(os.environ.get("IHVP_FLIPS", "10"))
each_format = pytest.mark.parametrize("name", ["scores", "scores.zarr"])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Two test points and two training examples in a tile: 3 × 12 chunks. No disk is waited for."""
    monkeypatch.setattr(blocks, "NUMBERS", 12 * 2)
    monkeypatch.setattr(os, "fsync", lambda file: None)


def contents(folder):
    """All files of a store; the order in which chunks were finished does not matter."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return found | {"done.txt": sorted(found["done.txt"].splitlines())}


def finished(problem, folder):
    problem.influence().scores(problem.test, out=folder)
    return folder


def half_finished(problem, folder):
    original = Store.write

    def write(store, *arguments):
        if len(store.done) == 17:
            raise KeyboardInterrupt
        original(store, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", write)
        with pytest.raises(KeyboardInterrupt):
            finished(problem, folder)
    return folder


@each_format
@pytest.mark.parametrize("made", [finished, half_finished])
def test_no_flipped_byte_goes_unnoticed(small, tmp_path, name, made):
    expected = contents(finished(small, tmp_path / "undisturbed" / name))
    before, folder = made(small, tmp_path / "before" / name), tmp_path / name
    rng = np.random.default_rng(0)
    paths = sorted(path for path in before.rglob("*") if path.is_file() and path.stat().st_size)
    for number in range(FLIPS):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        path = folder / paths[(number + rng.integers(2)) % len(paths)].relative_to(before)
        flipped = bytearray(path.read_bytes())
        flipped[rng.integers(len(flipped))] ^= rng.integers(1, 256)
        path.write_bytes(flipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StoreDamaged)
            if path.name == "manifest.json":
                with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
                    finished(small, folder)
                continue
            finished(small, folder)
        # Not the numbers alone: what was flipped is as it was.
        assert contents(folder) == expected


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("scores", "scores.npy"),
        ("scores", "products-00000002.npz"),
        ("scores.zarr", "scores.zarr/zarr.json"),
        ("scores.zarr", "scores.zarr/c/1/3"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"something else", None])
def test_what_is_not_what_was_written_is_named_and_computed_again(small, tmp_path, name, file, content):
    folder = finished(small, tmp_path / name)
    expected, path = contents(folder), folder / file
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    named = {
        "scores.npy": [r"in scores\.npy"],
        "products-00000002.npz": [r"products-00000002\.npz is not what was written \("],
        "c/1/3": ["test points 2 to 3 and training examples 6 to 7 in"],
        # The document of a zarr array is known, and nothing is lost with it.
        "zarr.json": [],
    }[file.removeprefix("scores.zarr/")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        finished(small, folder)
    assert [warning.category for warning in caught] == [StoreDamaged] * len(named)
    for pattern, warning in zip(named, caught, strict=True):
        assert warning.filename == __file__
        assert re.search(pattern, str(warning.message))
    assert contents(folder) == expected


@each_format
@pytest.mark.parametrize("pattern", ["scores.*", "products-00000002.npz", "done.txt"])
def test_files_of_another_store_are_not_taken(small, tmp_path, name, pattern):
    folder, other = finished(small, tmp_path / name), tmp_path / "other" / name
    expected = contents(folder)
    small.influence(damping=0.2).scores(small.test, out=other)
    for source in other.glob(pattern):
        target = folder / source.name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    with pytest.warns(StoreDamaged):
        finished(small, folder)
    assert contents(folder) == expected


def test_scores_and_journal_of_another_store_are_not_taken_together(small, tmp_path):
    folder, other = finished(small, tmp_path / "scores"), tmp_path / "other"
    expected = contents(folder)
    small.influence(damping=0.2).scores(small.test, out=other)
    for name in ("scores.npy", "done.txt", "products-00000000.npz"):
        shutil.copy(other / name, folder / name)
    with pytest.warns(StoreDamaged):
        finished(small, folder)
    assert contents(folder) == expected


def test_a_damaged_file_is_missed_by_all_tiles_that_wrote_to_it_and_by_no_others(small, tmp_path):
    x, labels = small.train
    influence = small.influence([(x[:1], labels[:1]), (x[1:], labels[1:])])
    folder = tmp_path / "scores.zarr"
    # The files have two columns each, and the tiles the columns 0, 1 and 2, 3 and 4, …
    influence.scores(small.test, out=folder)
    expected = contents(folder)
    path = folder / "scores.zarr" / "c/0/1"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.warns(StoreDamaged, match="training examples 1 to 2 and 1 more in"):
        influence.scores(small.test, out=folder)
    assert contents(folder) == expected


def test_whoever_reads_a_zarr_store_finds_a_flipped_byte(small, tmp_path):
    zarr = pytest.importorskip("zarr")
    folder = finished(small, tmp_path / "scores.zarr") / "scores.zarr"
    # A chunk at the corner: most of it lies beyond the scores.
    path, array = folder / "c/2/11", zarr.open_array(folder, mode="r")
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            array[4, 22]


def test_chunks_that_change_places_are_computed_again(small, tmp_path):
    folder = finished(small, tmp_path / "scores.zarr")
    expected = contents(folder)
    one, two = (folder / "scores.zarr" / "c/0" / number for number in ("1", "2"))
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)
    with pytest.warns(StoreDamaged, match="training examples 2 to 3 and 1 more in"):
        finished(small, folder)
    assert contents(folder) == expected


@pytest.mark.parametrize("vectors", [np.ones((2, 11)), np.ones((3, 12))])
def test_products_of_another_shape_are_computed_again(small, tmp_path, vectors):
    folder = finished(small, tmp_path / "scores")
    expected = contents(folder)
    path = folder / "products-00000002.npz"
    ihvp.InverseProducts(vectors, 0.0, ihvp.InverseProducts.load(path).model).save(path)
    # Solves of other widths are no damage.
    with nullcontext() if vectors.shape[1] == 12 else pytest.warns(StoreDamaged, match="of another run"):
        finished(small, folder)
    assert contents(folder) == expected


@pytest.mark.parametrize("line", ["0 0 2 99999999999", "0 22 2 2", "0 0 0 0", "99999999999 0 2 2"])
def test_lines_beyond_the_scores_promise_nothing(small, tmp_path, line):
    folder = finished(small, tmp_path / "scores.zarr")
    expected = contents(folder)
    with (folder / "done.txt").open("a") as file:
        file.write(f"{line} {'0' * 32}\n")
    with pytest.warns(StoreDamaged):
        finished(small, folder)
    assert contents(folder) == expected


MANIFESTS = [
    b"[1, 2]",
    b"3",
    b'"text"',
    b"null",
    b"{}",
    b"",
    b"not JSON",
    b"\xff\xfe",
    b'{"format": 1}',
    b"[" * 5,
]


@each_format
@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_that_is_none_is_named(small, tmp_path, name, manifest):
    folder = finished(small, tmp_path / name)
    (folder / "manifest.json").write_bytes(manifest)
    expected = contents(folder)
    with pytest.raises(StoreError, match=r"manifest\.json is damaged.*expected the object.*another out="):
        finished(small, folder)
    assert contents(folder) == expected


def test_the_manifest_says_what_wrote_it(small, tmp_path):
    folder = finished(small, tmp_path / "scores")
    found = json.loads((folder / "manifest.json").read_text())
    assert (found["format"], found["ihvp"], found["shape"]) == (1, ihvp.__version__, "(5, 23)")
    assert len(found["checksum"]) == 32


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("ihvp", "0.1.99", True),
        ("ihvp", "0.1.1rc1", True),
        ("ihvp", "0.2.0", False),
        ("ihvp", "1.1.0", False),
        ("ihvp", None, False),
        ("ihvp", ["0", "1"], False),
        ("format", 2, False),
        ("format", "1", False),
        ("format", None, False),
        ("surplus", "1", False),
    ],
)
def test_stores_of_the_same_format_and_series_go_on(small, tmp_path, key, value, accepted):
    folder = finished(small, tmp_path / "scores")
    manifest = json.loads((folder / "manifest.json").read_text()) | {key: value}
    del manifest["checksum"]
    (folder / "manifest.json").write_bytes(_sealed(manifest))
    expected = contents(folder)
    if accepted:
        finished(small, folder)
    else:
        with pytest.raises(
            StoreMismatch, match=rf"{key}: found .*, expected .*Pass another folder"
        ) as caught:
            finished(small, folder)
        assert set(caught.value.differing) == {key}
    assert contents(folder) == expected


@pytest.mark.parametrize("out", [3, b"scores", ["scores"], True, object()])
def test_what_is_no_path_is_named(small, out):
    with pytest.raises(InvalidOption, match=r"out is .*; expected a path, as a text or a pathlib.Path"):
        small.influence().scores(small.test, out=out)


def test_a_path_that_no_system_has_is_named(small, tmp_path):
    with pytest.raises(StoreError, match="Cannot use"):
        small.influence().scores(small.test, out=f"{tmp_path}/a\0b")


def test_a_version_is_part_of_what_scores_depend_on(small, tmp_path):
    def scores(version):
        objective = small.objective()
        ihvp.Influence(objective, version=version).scores(small.test, out=tmp_path / "scores")

    scores("1")
    scores("1")
    for other in ("2", None):
        with pytest.raises(StoreMismatch, match="version: found '1', expected"):
            scores(other)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child of another user is forked")
@each_format
@pytest.mark.parametrize("made", [None, finished, half_finished])
def test_a_read_only_folder_is_named(small, tmp_path, monkeypatch, name, made):
    folder = tmp_path / name
    if made:
        made(small, folder)
    small.influence().scores(small.test, out=tmp_path / "imported.zarr")
    for path in (*tmp_path.rglob("*"), tmp_path):
        path.chmod(0o555 if path.is_dir() else 0o444)
    kept = contents(folder) if made else None
    # The folders above are open to their owner alone.
    monkeypatch.chdir(tmp_path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            small.influence().scores(small.test, out=name)
        except IhvpError as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        found = pipe.read()
    tmp_path.chmod(0o755)
    assert found.startswith(f"StoreError: Cannot use {name}: [Errno 13] Permission denied")
    assert "Expected a folder that can be written" in found
    assert kept == (contents(folder) if made else None)
