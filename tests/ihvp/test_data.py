"""Batches: what counts as data, how it is counted and cut."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Mapping, MutableMapping

import numpy as np
import pytest

from ihvp.data import Batches, count_examples, describe_structure, take_examples
from ihvp.errors import DataError, EmptyData, InvalidOption, NotReiterable, UnequalBatches

Pair = namedtuple("Pair", ["x", "y"])


class Loader:
    """Iterates anew every time, as a DataLoader does."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Indexed:
    """Can be iterated only through ``__getitem__``, as old sequences can."""

    def __getitem__(self, index):
        if index > 1:
            raise IndexError
        return (np.full((2, 1), index),)


class Store(MutableMapping):
    """A mapping whose copy shares its entries."""

    def __init__(self, entries):
        self.entries = entries

    def __getitem__(self, key):
        return self.entries[key]

    def __setitem__(self, key, value):
        self.entries[key] = value

    def __delitem__(self, key):
        del self.entries[key]

    def __iter__(self):
        return iter(self.entries)

    def __len__(self):
        return len(self.entries)


def counts(data, batch_size=None):
    return [count for _, count in Batches(data, batch_size)]


@pytest.mark.parametrize(
    "data",
    [
        (np.zeros((5, 2)), np.zeros(5)),
        {"x": np.zeros((5, 2)), "y": np.zeros(5)},
        UserDict(x=np.zeros((5, 2))),
        np.zeros((5, 2)),
        Pair(np.zeros((5, 2)), np.zeros(5)),
        ({"ids": np.zeros((5, 3)), "mask": np.zeros((5, 3))}, np.zeros(5)),
    ],
    ids=["tuple", "dict", "UserDict", "array", "namedtuple", "nested"],
)
def test_one_batch_in_memory_is_one_batch(data):
    assert counts(data) == [5]


@pytest.mark.parametrize(
    "data",
    [
        [(np.zeros((4, 1)),), (np.zeros((2, 1)),)],
        Loader([{"x": np.zeros(4)}, {"x": np.zeros(2)}]),
        Loader([np.zeros(4), np.zeros(2)]),
        [UserDict(x=np.zeros(4)), UserDict(x=np.zeros(2))],
    ],
    ids=["list", "loader of dicts", "loader of arrays", "UserDicts"],
)
def test_iterable_of_batches_is_counted_batch_by_batch(data):
    assert counts(data) == [4, 2]


def test_data_can_be_iterated_again():
    batches = Batches([(np.zeros(4),)])
    assert len(list(batches)) == len(list(batches)) == 1


def test_data_set_of_single_examples_is_refused():
    # A torch Dataset has items and no iterator: its items are examples, not batches.
    with pytest.raises(DataError, match="in a loader"):
        Batches(Indexed())


def test_none_is_one_example():
    assert counts(None) == [1]


def test_batch_size_cuts_into_pieces_that_join_to_the_whole():
    x = np.arange(14.0).reshape(7, 2)
    pieces = list(Batches({"x": x}, batch_size=3))
    assert [count for _, count in pieces] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([piece["x"] for piece, _ in pieces]), x)


def test_batch_size_cuts_every_batch_of_an_iterable():
    assert counts([(np.zeros(5),), (np.zeros(2),)], batch_size=2) == [2, 2, 1, 2]


def test_batch_size_above_the_data_leaves_it_whole():
    data = (np.zeros(5),)
    assert next(iter(Batches(data, 100)))[0] is data


@pytest.mark.parametrize("size", [np.int64(2), 2])
def test_batch_size_may_be_a_numpy_integer(size):
    assert counts((np.zeros(4),), size) == [2, 2]


@pytest.mark.parametrize("size", [0, -1, 2.0, "2"])
def test_batch_size_that_is_no_positive_integer_is_refused(size):
    with pytest.raises(InvalidOption, match=r"batch_size is .*; expected a positive integer"):
        Batches((np.zeros(4),), size)


@pytest.mark.parametrize(
    "data",
    [(i for i in range(3)), iter([(np.zeros(2),)]), map(str, []), zip([1], [2], strict=True), enumerate([])],
    ids=["generator", "iterator", "map", "zip", "enumerate"],
)
def test_iterator_is_refused_with_the_reason(data):
    with pytest.raises(NotReiterable, match=r"can be iterated only once; every product .* Pass a list"):
        Batches(data)


@pytest.mark.parametrize("data", [3, 2.5, object()])
def test_data_that_is_no_iterable_is_refused(data):
    with pytest.raises(DataError, match=r"expected one batch .* or an iterable"):
        Batches(data)


@pytest.mark.parametrize("data", [[], Loader([])])
def test_no_batch_is_empty_data(data):
    with pytest.raises(EmptyData, match=r"holds no batch; expected at least one"):
        list(Batches(data))


@pytest.mark.parametrize("data", [(np.zeros((0, 2)),), [(np.zeros(2),), (np.zeros(0),)]])
def test_batch_without_examples_is_empty_data(data):
    with pytest.raises(EmptyData, match=r"holds no example"):
        list(Batches(data))


@pytest.mark.parametrize("second", [{"y": np.zeros(2)}, (np.zeros(2),), {"x": np.zeros((2, 1))}, None])
def test_batches_of_unequal_structure_are_refused_with_the_index(second):
    with pytest.raises(UnequalBatches, match=r"Batch 1 is .*; expected the structure of batch 0: .*\. Make"):
        list(Batches([{"x": np.zeros(2)}, second]))


def test_key_order_of_dict_batches_does_not_matter():
    assert counts([{"a": np.zeros(2), "b": np.zeros(2)}, {"b": np.zeros(3), "a": np.zeros(3)}]) == [2, 3]


def test_unequal_lengths_within_a_batch_are_refused_with_the_lengths():
    with pytest.raises(
        UnequalBatches, match=r"batch 0 .*\['x'\]: 3, \['y'\]: 2\); expected one row an example"
    ):
        list(Batches({"x": np.zeros(3), "y": np.zeros(2)}))


def test_batch_without_arrays_is_refused():
    with pytest.raises(DataError, match=r"holds no array with a leading dimension"):
        list(Batches([("text", 3)]))


def test_take_examples_keeps_the_classes_of_containers():
    batch = (UserDict(x=np.arange(4)), Pair(np.arange(4), [np.arange(4)]))
    piece = take_examples(batch, 1, 3)
    assert isinstance(piece[0], UserDict)
    assert isinstance(piece[1], Pair)
    assert isinstance(piece[1].y, list)
    np.testing.assert_array_equal(piece[0]["x"], [1, 2])
    np.testing.assert_array_equal(piece[1].y[0], [1, 2])


@pytest.mark.parametrize("kind", [dict, UserDict, Store])
def test_take_examples_leaves_the_batch_as_it_is(kind):
    batch = kind({"x": np.arange(4)})
    take_examples(batch, 0, 1)
    np.testing.assert_array_equal(batch["x"], np.arange(4))


def test_take_examples_of_an_unknown_mapping_is_a_mapping_of_the_rows():
    piece = take_examples(Store({"x": np.arange(4)}), 2, 4)
    assert isinstance(piece, Mapping)
    np.testing.assert_array_equal(piece["x"], [2, 3])


def test_scalars_in_a_batch_are_passed_through():
    piece = take_examples({"x": np.arange(4), "weight": 0.5, "zero_d": np.array(2.0)}, 0, 2)
    assert piece["weight"] == 0.5
    assert piece["zero_d"] == 2.0


def test_count_examples_counts_nested_arrays():
    assert count_examples(({"x": np.zeros((3, 2))}, [np.zeros(3)])) == 3


def test_structure_names_containers_and_dimensions():
    assert describe_structure((np.zeros((2, 2)), {"b": None, "a": np.zeros(1)})) == (
        "[2-d array, {'a': 1-d array, 'b': None}]"
    )


def test_pieces_are_the_batches_before_they_are_cut():
    x = np.arange(14.0).reshape(7, 2)
    batches = Batches((x,), batch_size=3)
    pieces = list(batches.pieces())
    assert [(piece.start, piece.stop, piece.count) for piece in pieces] == [(0, 3, 3), (3, 6, 3), (6, 7, 1)]
    for piece, (batch, _) in zip(pieces, batches, strict=True):
        assert piece.batch is batches.data
        np.testing.assert_array_equal(piece.take()[0], batch[0])


def test_pieces_are_the_same_if_they_are_the_same_rows_of_one_object():
    data = (np.zeros(4),)
    one, two = Batches(data, batch_size=2).pieces()
    again, _ = Batches(data, batch_size=2).pieces()
    other, _ = Batches((np.zeros(4),), batch_size=2).pieces()
    assert one.is_same(again)
    assert not one.is_same(two)
    assert not one.is_same(other)


@pytest.mark.parametrize(
    ("data", "lasting"),
    [
        ((np.zeros(4),), True),
        ({"x": np.zeros(4)}, True),
        (None, True),
        ([(np.zeros(4),)], True),
        (Loader([(np.zeros(4),)]), False),
    ],
    ids=["tuple", "dict", "None", "list", "loader"],
)
def test_arrays_in_memory_last_and_those_of_a_loader_need_not(data, lasting):
    assert Batches(data).lasting is lasting


def test_a_function_that_yields_batches_gets_advice():
    def batches():
        yield np.ones((2, 3))

    with pytest.raises(DataError, match=r"The data is function; .* pass list\(function\(\)\)"):
        Batches(batches)
