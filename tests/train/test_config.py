from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ghn_fast.train.config import ConfigError, TrainConfig


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    config = TrainConfig(ghn={"hid": 16}, steps=3, widths=(32, 16), milestones=(0.5,))
    config.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == config
    assert json.loads((tmp_path / "config.json").read_text())["widths"] == [16, 32]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": None, "max_minutes": None}, "a run needs an end"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, adam, not 'sgd'"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"lr": -1.0}, "lr must be positive, not -1.0"),
        ({"meta_batch": 0}, "meta_batch must be positive, not 0"),
        ({"widths": ()}, "widths must be"),
        ({"widths": (20,)}, "widths must be multiples of 8"),
        ({"ema_decay": 1.0}, "ema_decay must be"),
        ({"learning_rate": 1.0}, "unknown settings: learning_rate; there are"),
    ],
)
def test_impossible_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict(values)
