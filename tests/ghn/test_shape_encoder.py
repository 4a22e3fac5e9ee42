from __future__ import annotations

import pytest

from ghn_fast.ghn.embed.shape_encoder import (
    ShapeEncoder,
    channel_vocabulary,
    shape_as_4d,
    spatial_vocabulary,
)
from ghn_fast.graph import Node


def test_vocabularies() -> None:
    channels = channel_vocabulary(10)
    assert channels[:6] == [1, 3, 8, 10, 16, 24]
    assert channels[-1] == 8192
    assert len(channels) == 391  # the checkpoints have 392 rows, one for nodes without a shape
    assert spatial_vocabulary(11) == [1, 3, 5, 7, 9, 11, 14, 16]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), (1, 1, 1, 1)),
        ((7,), (7, 1, 1, 1)),
        ((5, 6), (5, 6, 1, 1)),
        ((1, 197, 768), (1, 197, 768, 1)),
        ((96, 1, 1), (96, 1, 1, 1)),
        ((8, 4, 3, 3), (8, 4, 3, 3)),
        ((8, 4, 2, 3, 5), (8, 4, 3, 5)),
        ((1, 2, 3, 4, 5, 6), (1, 2, 5, 6)),
    ],
)
def test_shape_as_4d(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert shape_as_4d(shape) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 197, 768), (1, 768, 14, 14)),
        ((1, 3136, 96), (1, 96, 56, 56)),
        ((196, 1, 768), (1, 768, 14, 14)),
        ((1, 96, 7, 9), (1, 96, 7, 9)),
        ((1, 8, 14, 14), (1, 8, 14, 14)),  # channels first, though they are fewer
        ((1, 14, 14, 8), (1, 8, 14, 14)),
        ((1, 14, 14, 384), (1, 384, 14, 14)),
        ((1, 1, 196, 96), (1, 96, 14, 14)),
        ((1, 64, 1, 28), (1, 64, 1, 28)),
        ((64, 7, 9), (1, 64, 7, 9)),
        ((1, 4, 7, 9, 96), (1, 96, 15, 15)),  # time, height, width
        ((20, 12), (20, 12, 1, 1)),  # an embedding, as far as its shape tells
    ],
)
def test_shape_of_position_tables(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert shape_as_4d(shape, "pos_enc") == expected


def indices_of(*shapes: tuple[int, ...] | None) -> list[list[int]]:
    encoder = ShapeEncoder(32, 10, (64, 64, 11, 11))
    return encoder.indices([Node("conv", "w", shape) for shape in shapes]).tolist()


def test_values_outside_the_vocabulary() -> None:
    channels, spatial = channel_vocabulary(10), spatial_vocabulary(11)
    (row,) = indices_of((5, 20, 2, 13))
    assert [channels[row[0]], channels[row[1]]] == [8, 16]  # 5 takes 8; 20 the lower neighbour
    assert [spatial[row[2]], spatial[row[3]]] == [3, 14]  # 2 takes 3
    (row,) = indices_of((10**6, 3, 40, 1))
    assert channels[row[0]] == 8192
    assert spatial[row[2]] == 16


def test_nodes_without_a_shape_take_the_last_entries() -> None:
    assert indices_of(None) == [[391, 391, 8, 8]]
