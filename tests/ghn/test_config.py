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
        ({"num_classes": 0}, "num_classes must be positive"),
        ({"width": 3}, "unknown settings of a GHN: width"),
    ],
)
def test_invalid(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GHNConfig.from_dict(values)
