from __future__ import annotations

from typing import Any

import pytest

from ghn_fast.ghn import GHNConfig


def test_dictionary_round_trip() -> None:
    config = GHNConfig(max_shape=(64, 64, 16, 16), num_classes=1000)
    assert GHNConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hid": 30}, "hid must be a positive multiple of 4, not 30"),
        ({"hypernet": "gcn"}, "hypernet must be one of"),
        ({"decoder": "x"}, "decoder must be one of"),
        ({"max_shape": (64, 64, 11)}, "four positive sizes"),
        ({"max_shape": (64, 64, 11, 9)}, "square in space"),
        ({"decoder": "mlp", "max_shape": (16, 8, 3, 3)}, "as many outputs as inputs"),
        ({"num_classes": 0}, "num_classes must be positive"),
        (
            {"mean": (0.5,) * 5},
            "mean must be a number from -1000 to 1000 for each of",
        ),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean must be"),
        ({"mean": (0.5, 1e38, 0.5)}, "mean must be"),
        ({"std": (1, 1e-320, 1)}, r"std must be a number from 0\.001 to 1000 for each of three"),
        ({"std": (1, 1, float("inf"))}, "std must be"),
        ({"std": (1, 1, 1)}, "must be given together"),
        ({"image_size": -1}, "image_size must be from 0 to 1024, not -1"),
        ({"image_size": 10**9}, "image_size must be from 0 to 1024, not 1000000000"),
        ({"width": 3}, "unknown settings of a GHN: width"),
    ],
)
def test_invalid(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GHNConfig.from_dict(values)
