"""Scores on disk: complete after any interruption, and never mixed with those of another run."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import ihvp
from ihvp.errors import PackageNotInstalled, StoreError, StoreInUse, StoreMismatch
from ihvp.influence import StoreDamaged, blocks
from ihvp.influence.store import Store

from .conftest import CrossEntropy, Margin

FOLDERS = ["scores", "scores.zarr"]
takes_room = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is taken at once on Linux")
each_format = pytest.mark.parametrize("name", FOLDERS)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Two test points and two training examples in a tile: 3 × 12 chunks."""
    monkeypatch.setattr(blocks, "NUMBERS", 12 * 2)


CHUNKS = 3 * 12


@pytest.fixture
def chunks(monkeypatch):
    """The chunks that were computed, and a way to do something in the place of one of them."""
    original = Store.write

    class Chunks(list):
        instead = None

    seen = Chunks()
    seen.original = original

    def write(store, row, column, chunk):
        seen.append((row, column))
        if seen.instead and len(seen) == seen.instead[0]:
            seen.instead[1](store, row, column, chunk)
        else:
            original(store, row, column, chunk)

    monkeypatch.setattr(Store, "write", write)
    return seen


def files(folder):
    """The scores as they are on the disk."""
    folder = Path(folder)
    found = [folder / "scores.npy"] if folder.suffix != ".zarr" else (folder / "scores.zarr").rglob("*")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.is_file()}


_WHOLE = {}


@pytest.fixture
def undisturbed(small, tmp_path_factory):
    """What gives the files of a run without interruptions, which is made once for each name."""

    def made(name):
        if name not in _WHOLE:
            folder = tmp_path_factory.mktemp("undisturbed") / name
            small.influence().scores(small.test, out=folder)
            _WHOLE[name] = files(folder)
        return _WHOLE[name]

    return made


@each_format
def test_streamed_scores_are_the_scores(small, tmp_path, name):
    influence = small.influence()
    found = influence.scores(small.test, out=tmp_path / "new" / name)
    # Products are multiplied in another layout of memory.
    assert np.allclose(found, influence.scores(small.test), rtol=0, atol=1e-15)
    assert found.dtype == np.float64
    assert found.axes == ("test", "train")
    assert repr(found).startswith("Scores(test: 5, train: 23; float64, residual ")
    assert_array_equal(found[1:3, ::2], np.asarray(found)[1:3, ::2])
    assert_array_equal(found.top_k(3).indices, influence.top_k(small.test, 3).indices)
    assert found.to_pandas().shape == (5, 23)
    assert (found > 0).shape == (5, 23)


def test_streamed_scores_are_mapped_and_cannot_be_written(small, tmp_path):
    found = small.influence().scores(small.test, out=tmp_path / "scores")
    assert isinstance(found.values, np.memmap)
    assert_array_equal(np.load(tmp_path / "scores" / "scores.npy"), found)
    with pytest.raises(ValueError, match="read-only"):
        found.values[0, 0] = 1


def test_a_zarr_store_is_read_by_zarr(small, tmp_path):
    zarr = pytest.importorskip("zarr")
    found = small.influence().scores(small.test, out=str(tmp_path / "scores.zarr"))
    array = zarr.open_array(tmp_path / "scores.zarr" / "scores.zarr", mode="r")
    assert array.chunks == (2, 2)
    assert_array_equal(array[:], found)


@each_format
def test_a_finished_store_is_only_read(small, tmp_path, name, chunks, monkeypatch):
    first = small.influence().scores(small.test, out=tmp_path / name)
    assert len(chunks) == CHUNKS
    influence = small.influence()
    monkeypatch.setattr(influence.inverse, "solve", lambda *args, **kwargs: pytest.fail("solved again"))
    second = influence.scores(small.test, out=tmp_path / name)
    assert len(chunks) == CHUNKS
    assert_array_equal(first, second)
    assert first.residual == second.residual


def before(error):
    def raise_it(*arguments):
        raise error

    return raise_it


def after_a_half(error):
    def write_a_half(store, row, column, chunk):
        store._array.write(row, column, np.full_like(chunk[:1], 7.0))
        raise error

    return write_a_half


@each_format
@pytest.mark.parametrize(
    ("number", "how", "error"),
    [
        (1, before, KeyboardInterrupt),
        (2, after_a_half, ZeroDivisionError),
        (13, after_a_half, KeyboardInterrupt),
        (36, before, ZeroDivisionError),
    ],
)
def test_an_interrupted_run_goes_on_where_it_stopped(
    small, tmp_path, undisturbed, chunks, name, number, how, error
):
    expected = undisturbed(name)
    chunks.clear()
    chunks.instead = number, how(error)
    with pytest.raises(error):
        small.influence().scores(small.test, out=tmp_path / name)
    chunks.instead = None
    small.influence().scores(small.test, out=tmp_path / name)
    assert files(tmp_path / name) == expected
    assert len(chunks) == CHUNKS + 1


@each_format
def test_many_interruptions_in_one_run(small, tmp_path, undisturbed, chunks, name):
    expected = undisturbed(name)
    chunks.clear()
    runs = 0
    while runs == 0 or chunks.instead[0] <= len(chunks):
        runs += 1
        chunks.instead = len(chunks) + 5, before(KeyboardInterrupt)
        try:
            small.influence().scores(small.test, out=tmp_path / name)
        except KeyboardInterrupt:
            continue
        break
    assert files(tmp_path / name) == expected
    assert len(chunks) == CHUNKS + runs - 1


@pytest.mark.parametrize(
    ("name", "place"),
    [
        *(
            (name, f"store.{place}")
            for name in FOLDERS
            for place in ("replace", "Store._identify", "Store._finished")
        ),
        ("scores", "array_file._reserve"),
        ("scores.zarr", "array_file.replace"),
    ],
)
def test_an_interrupted_set_up_is_made_anew(small, tmp_path, monkeypatch, name, place):
    with monkeypatch.context() as patch:
        patch.setattr(f"ihvp.influence.{place}", before(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            small.influence().scores(small.test, out=tmp_path / name)
    assert np.isfinite(small.influence().scores(small.test, out=tmp_path / name)).all()


@pytest.mark.parametrize(
    ("name", "place"),
    [("scores", "NumpyFile.__init__"), ("scores", "_reserve"), ("scores.zarr", "ZarrFolder.__init__")],
)
def test_a_set_up_that_stopped_before_there_was_an_array(small, tmp_path, monkeypatch, name, place):
    with monkeypatch.context() as patch:
        patch.setattr(f"ihvp.influence.array_file.{place}", before(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            small.influence().scores(small.test, out=tmp_path / name)
    assert not (tmp_path / name / "scores.npy").exists()
    # Nothing has been computed, so other settings are no mixture.
    found = small.influence(damping=0.5).scores(small.test, out=tmp_path / name)
    assert np.allclose(found, small.defined(damping=0.5), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("missing", ["c/0/0", "c/1/3", "c/2/11"])
def test_a_lost_chunk_of_a_zarr_store_is_computed_again(small, tmp_path, chunks, missing):
    folder, undisturbed = tmp_path / "scores.zarr", tmp_path / "undisturbed" / "scores.zarr"
    for place in (folder, undisturbed):
        small.influence().scores(small.test, out=place)
    chunks.clear()
    (folder / "scores.zarr" / missing).unlink()
    row, column = (2 * int(number) for number in missing.split("/")[1:])
    with pytest.warns(StoreDamaged, match=f"test points {row} to .* and training examples {column} to"):
        found = small.influence().scores(small.test, out=folder)
    assert chunks == [tuple(2 * int(number) for number in missing.split("/")[1:])]
    assert files(folder) == files(undisturbed)
    assert np.isfinite(found).all()
    assert len((folder / "done.txt").read_bytes().splitlines()) == CHUNKS


def cut(problem, *stops):
    return [
        tuple(array[a:b] for array in problem.train) for a, b in zip((0, *stops), (*stops, 23), strict=True)
    ]


def test_a_lost_chunk_is_missed_by_all_tiles_that_wrote_to_it(small, tmp_path, chunks):
    folder = tmp_path / "scores.zarr"
    # The files have two columns each, and the tiles the columns 0, 1 and 2, 3 and 4, …
    influence = small.influence(cut(small, 1))
    expected = np.asarray(influence.scores(small.test, out=folder))
    (folder / "scores.zarr" / "c/0/1").unlink()
    chunks.clear()
    with pytest.warns(StoreDamaged, match="training examples 1 to 2 and 1 more in"):
        found = influence.scores(small.test, out=folder)
    assert chunks == [(0, 1), (0, 3)]
    assert_array_equal(found, expected)


def test_a_chunk_of_zeros_is_in_a_file(small, tmp_path, chunks):
    influence = small.influence()
    products = influence.inverse_products(small.test)
    products.vectors[:] = 0
    for _ in range(2):
        found = influence.scores(products, out=tmp_path / "scores.zarr")
    assert_array_equal(np.asarray(found), 0)
    assert len(chunks) == CHUNKS
    assert len(files(tmp_path / "scores.zarr")) == CHUNKS + 1


@each_format
def test_a_chunk_is_on_the_disk_before_its_line(small, tmp_path, chunks, monkeypatch, name):
    synchronised = []
    original = os.fsync

    def fsync(descriptor):
        found = os.fstat(descriptor)
        synchronised.append((found.st_dev, found.st_ino))
        original(descriptor)

    def identity(path):
        return path.stat().st_dev, path.stat().st_ino

    def stopped(store, row, column, chunk):
        synchronised.clear()
        chunks.original(store, row, column, chunk)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    chunks.instead = 1, stopped
    folder = tmp_path / name
    with pytest.raises(KeyboardInterrupt):
        small.influence().scores(small.test, out=folder)
    names = ["scores.npy"]
    if name.endswith(".zarr"):
        names = ["scores.zarr/c/0/0"]
        if sys.platform != "win32":
            names += ["scores.zarr/c/0", "scores.zarr/c", "scores.zarr"]
    assert list(dict.fromkeys(synchronised)) == [identity(folder / name) for name in [*names, "done.txt"]]


@each_format
@pytest.mark.parametrize("tail", [b"0", b"0 1", b"0 10 2 2", b"\x00\x00\x00\n", b"0 1 2\n", b"done\n0 0"])
def test_a_torn_line_is_no_promise(small, tmp_path, undisturbed, chunks, name, tail):
    expected = undisturbed(name)
    chunks.clear()
    chunks.instead = 5, before(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        small.influence().scores(small.test, out=tmp_path / name)
    with (tmp_path / name / "done.txt").open("ab") as file:
        file.write(tail)
    # What is no whole line an interruption may have left.
    whole = pytest.warns(StoreDamaged, match="1 lines of done.txt") if b"\n" in tail else nullcontext()
    with whole:
        small.influence().scores(small.test, out=tmp_path / name)
    assert files(tmp_path / name) == expected
    assert len((tmp_path / name / "done.txt").read_bytes().splitlines()) == CHUNKS


@each_format
@pytest.mark.parametrize("stops", [(1,), (1, 2, 3, 4), (6, 7)])
def test_a_run_may_go_on_with_batches_that_are_cut_otherwise(small, tmp_path, chunks, name, stops):
    chunks.instead = 5, before(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        small.influence().scores(small.test, out=tmp_path / name)
    chunks.instead = None
    # Tiles over parts of finished ones, and finished ones over parts of tiles.
    for again in (
        small.influence(cut(small, *stops)),
        small.influence(),
        small.influence(cut(small, *stops)),
    ):
        found = again.scores(small.test, out=tmp_path / name)
        assert np.allclose(found, small.defined(), rtol=1e-8, atol=1e-12)
    computed = len(chunks)
    again.scores(small.test, out=tmp_path / name)
    assert len(chunks) == computed


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda p: (p.influence(damping=0.2), {}), {"damping"}),
        (lambda p: (p.influence(solver=ihvp.CG(rtol=1e-11)), {}), {"solver"}),
        (lambda p: (p.influence(solver=ihvp.Direct()), {}), {"solver"}),
        (lambda p: (p.influence(), {"test_data": tuple(a[::-1] for a in p.test)}), {"test data"}),
        (lambda p: (p.influence(), {"test_data": tuple(a[:4] for a in p.test)}), {"test data", "shape"}),
        (lambda p: (p.influence(), {"test_loss": Margin(0)}), {"test loss"}),
        (lambda p: (p.influence(), {"train_data": p.test}), {"scored data", "shape"}),
        (lambda p: (p.influence(tuple(a[::-1] for a in p.train)), {}), {"training data", "scored data"}),
        (
            lambda p: (p.influence(tuple(a[::-1] for a in p.train)), {"train_data": p.train}),
            {"training data"},
        ),
        (lambda p: (p.influence(curvature=ihvp.Dense(p.hessian)), {}), {"curvature"}),
        (lambda p: (ihvp.Influence(p.objective(), 0.0, ihvp.CG(rtol=1e-12)), {}), {"training loss"}),
        (lambda p: (changed(p, loss=CrossEntropy(0.051)), {}), {"loss", "test loss"}),
        (lambda p: (changed(p, params=np.nextafter(p.weights, 1)), {}), {"parameters"}),
        (lambda p: (changed(p, reduction="sum", checks=False), {}), {"reduction"}),
        (
            lambda p: (changed(p, params=p.weights.astype(np.float32)), {}),
            {"parameters", "dtype"},
        ),
    ],
)
def test_another_run_is_refused_with_the_difference_named(small, tmp_path, change, named):
    small.influence().scores(small.test, out=tmp_path / "scores")
    contents = files(tmp_path / "scores")
    influence, arguments = change(small)
    influence._optimum_checked = True
    with pytest.raises(StoreMismatch) as caught:
        influence.scores(**{"test_data": small.test, **arguments}, out=tmp_path / "scores")
    assert set(caught.value.differing) == named
    assert all(name in str(caught.value) for name in named)
    assert "Pass another folder" in str(caught.value)
    assert files(tmp_path / "scores") == contents


@each_format
@pytest.mark.parametrize("lost", [[], ["done.txt"], ["products-*"]])
def test_a_store_without_its_scores_is_compared_before_it_is_made_anew(small, tmp_path, name, lost):
    folder = tmp_path / name
    small.influence().scores(small.test, out=folder)
    scores = folder / ("scores.npy" if name == "scores" else "scores.zarr")
    shutil.rmtree(scores) if scores.is_dir() else scores.unlink()
    for pattern in lost:
        for path in folder.glob(pattern):
            path.unlink()
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(StoreMismatch, match="damping"):
        small.influence(damping=0.2).scores(small.test, out=folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    with nullcontext() if "done.txt" in lost else pytest.warns(StoreDamaged, match="and 35 more in scores"):
        assert np.isfinite(small.influence().scores(small.test, out=folder)).all()


def changed(problem, **options):
    return ihvp.Influence(problem.objective(**options), solver=ihvp.CG(rtol=1e-12), train_loss=CrossEntropy())


def test_inverse_products_are_told_apart(small, tmp_path):
    influence = small.influence()
    one, other = influence.inverse_products(small.test), influence.inverse_products(small.test, Margin(0))
    influence.scores(one, out=tmp_path / "scores")
    influence.scores(one, out=tmp_path / "scores")
    with pytest.raises(StoreMismatch, match="inverse products: found"):
        influence.scores(other, out=tmp_path / "scores")


@each_format
@pytest.mark.parametrize("file", ["notes.txt", "scores.npy", "done.txt"])
def test_a_folder_of_somebodys_files_is_refused_and_left_as_it_is(small, tmp_path, name, file):
    (tmp_path / name).mkdir()
    (tmp_path / name / file).write_text("mine")
    with pytest.raises(StoreError, match=rf"holds other files \({file}\) and no manifest"):
        small.influence().scores(small.test, out=tmp_path / name)
    assert (tmp_path / name / file).read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_refused(small, tmp_path):
    (tmp_path / "scores").write_text("mine")
    for place in (tmp_path / "scores", tmp_path / "scores" / "below"):
        with pytest.raises(StoreError, match="Expected a folder that can be written"):
            small.influence().scores(small.test, out=place)


@each_format
@pytest.mark.parametrize("method", ["mkdir", "open"])
def test_a_read_only_disk_is_refused_before_the_work(small, tmp_path, monkeypatch, name, method):
    def read_only(path, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    influence = small.influence()
    with monkeypatch.context() as patch:
        patch.setattr(Path, method, read_only)
        patch.setattr(influence.inverse, "solve", lambda *args, **kwargs: pytest.fail("work was done"))
        with pytest.raises(StoreError, match=r"Read-only file system.*Expected a folder that can be written"):
            influence.scores(small.test, out=tmp_path / name)
    assert not (tmp_path / name / "manifest.json").exists()
    assert np.isfinite(influence.scores(small.test, out=tmp_path / name)).all()


@takes_room
def test_no_room_is_found_before_the_work(small, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    influence = small.influence()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        patch.setattr(influence.inverse, "solve", lambda *args, **kwargs: pytest.fail("work was done"))
        with pytest.raises(StoreError, match=r"No space left on device.*Make room"):
            influence.scores(small.test, out=tmp_path / "scores")
    # What was taken of the full disk is given back.
    assert not list((tmp_path / "scores").glob("scores*"))
    assert np.isfinite(influence.scores(small.test, out=tmp_path / "scores")).all()


@pytest.fixture
def tiny_disk(tmp_path):
    """Mounts a file system of so many bytes, where the tests may."""
    place, mount = tmp_path / "disk", shutil.which("mount")
    place.mkdir()

    def make(size):
        command = [str(mount), "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if mount is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted")
        return place

    yield make
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(
    ("name", "pages"),
    [*(("scores", n) for n in (1, 2, 3, 5, 7)), *(("scores.zarr", n) for n in (1, 2, 4, 8, 12))],
)
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    small, tmp_path, undisturbed, tiny_disk, name, pages
):
    """Of a page each file takes one, if not more."""
    expected = undisturbed(name)
    disk = tiny_disk(pages * 4096)
    with pytest.raises(StoreError, match=r"No space left.*(Make room|or room)"):
        small.influence().scores(small.test, out=disk / name)
    subprocess.run(["mount", "-o", "remount,size=4M", str(disk)], check=True)
    small.influence().scores(small.test, out=disk / name)
    assert files(disk / name) == expected


@takes_room
@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_room_need_not_be_taken_where_the_file_system_cannot(small, tmp_path, monkeypatch, number):
    def unsupported(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert np.isfinite(small.influence().scores(small.test, out=tmp_path / "scores")).all()


@pytest.fixture
def limit():
    """Lets the kernel refuse to make files longer than so many bytes; None takes the limit away."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield set_limit
    set_limit(None)


@each_format
@pytest.mark.parametrize(("number", "place"), [(1, "the scores"), (20, "half of the line"), (36, "the line")])
def test_what_a_full_disk_refuses_is_not_done(
    small, tmp_path, undisturbed, chunks, limit, name, number, place
):
    expected = undisturbed(name)
    chunks.clear()

    def without_room(store, row, column, chunk):
        room = (store.folder / "done.txt").stat().st_size + (3 if place == "half of the line" else 0)
        write = store._array.write

        def write_then_fill(*arguments):
            write(*arguments)
            limit(room)

        if place == "the scores":
            limit(0)
        else:
            store._array.write = write_then_fill
        try:
            original(store, row, column, chunk)
        finally:
            limit(None)

    original = chunks.original
    chunks.instead = number, without_room
    with pytest.raises(StoreError, match=r"File too large|No space left"):
        small.influence().scores(small.test, out=tmp_path / name)
    chunks.instead = None
    small.influence().scores(small.test, out=tmp_path / name)
    assert files(tmp_path / name) == expected
    assert len(chunks) == CHUNKS + 1


@each_format
def test_a_disk_that_is_removed_in_the_middle_is_named(small, tmp_path, chunks, name):
    chunks.instead = 20, lambda store, *arguments: shutil.rmtree(tmp_path / name)
    with pytest.raises(StoreError, match=r"Cannot (use|write)"):
        small.influence().scores(small.test, out=tmp_path / name)


@each_format
def test_a_second_run_at_the_same_time_is_refused(small, tmp_path, chunks, name):
    second = []

    def meanwhile(store, row, column, chunk):
        with pytest.raises(StoreInUse, match="Another run writes to"):
            small.influence().scores(small.test, out=tmp_path / name)
        second.append(True)
        store._array.write(row, column, chunk)

    chunks.instead = 7, meanwhile
    small.influence().scores(small.test, out=tmp_path / name)
    assert second
    small.influence().scores(small.test, out=tmp_path / name)


@pytest.mark.skipif(sys.platform == "win32", reason="another kind of lock")
def test_a_file_system_without_locks_is_no_hindrance(small, tmp_path, monkeypatch):
    import fcntl

    def unsupported(*arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert np.isfinite(small.influence().scores(small.test, out=tmp_path / "scores")).all()


def test_missing_zarr_is_named(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(PackageNotInstalled, match=r"zarr.*ihvp\[influence\]"):
        small.influence().scores(small.test, out=tmp_path / "scores.zarr")
    assert not (tmp_path / "scores.zarr").exists()


def test_files_are_closed_after_a_failure(small, tmp_path, chunks, monkeypatch):
    opened = []
    original = Path.open

    def remember(*arguments, **options):
        opened.append(original(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(Path, "open", remember)
    chunks.instead = 3, before(ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        small.influence().scores(small.test, out=tmp_path / "scores")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_finished", before(ZeroDivisionError))
        with pytest.raises(ZeroDivisionError):
            small.influence().scores(small.test, out=tmp_path / "scores")
    assert opened
    assert all(file.closed for file in opened)
