from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ghn_fast.ghn import make_config
from ghn_fast.train.config import PRESETS, ConfigError, TrainConfig
from ghn_fast.train.schedule import learning_rate


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    config = TrainConfig(ghn={"hid": 16}, steps=3, widths=(32, 16), milestones=(0.5,))
    config.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == config
    assert json.loads((tmp_path / "config.json").read_text())["widths"] == [16, 32]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": None, "max_minutes": None}, "a run needs an end"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, adam, soap, not 'sgd'"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"lr": -1.0}, "lr must be positive, not -1.0"),
        ({"meta_batch": 0}, "meta_batch must be positive, not 0"),
        ({"widths": ()}, "widths must be"),
        ({"widths": (20,)}, "widths must be multiples of 8"),
        ({"ema_decay": 1.0}, "ema_decay must be"),
        ({"crop_share": 1.5}, "crop_share must be from 0 to 1, not 1.5"),
        ({"accumulate": 0}, "accumulate must be positive, not 0"),
        ({"validation_networks": 0}, "validation_networks must be positive, not 0"),
        ({"validation_images": 0}, "validation_images must be positive, not 0"),
        ({"lr": float("nan")}, "lr must be positive, not nan"),
        ({"lr": float("inf")}, "lr must be finite, not inf"),
        ({"lr": 10**400}, "lr must be finite"),
        ({"max_minutes": float("inf")}, "max_minutes must be finite"),
        ({"final_lr": -3.0}, "final_lr must be from 0 to 1, not -3.0"),
        ({"decay": -2.0}, "decay must be at least 0, not -2.0"),
        ({"milestones": (0.5, -1.0)}, r"milestones must be from 0 to 1, not \(0.5, -1.0\)"),
        ({"grad_clip": float("nan")}, "grad_clip must be at least 0, not nan"),
        ({"network_clip": -1.0}, "network_clip must be at least 0, not -1.0"),
        ({"label_smoothing": -3.0}, "label_smoothing must be from 0 to 1, not -3.0"),
        ({"label_smoothing": float("nan")}, "label_smoothing must be from 0 to 1, not nan"),
        ({"predicted_decay": -5.0}, "predicted_decay must be at least 0"),
        ({"betas": (-1.0, 0.9)}, r"betas must be at least 0 and below 1, not \(-1.0, 0.9\)"),
        ({"threads": -3}, "threads must be at least 0, not -3"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*64 - 1, not -1"),
        ({"image_size": 4096}, "image_size must be from 1 to 1024, not 4096"),
        ({"ghn": {"hid": "8"}}, "ghn's hid must be int, not '8'"),
        ({"ghn": {"hid": 7}}, "ghn: hid must be a positive multiple of 4, not 7"),
        ({"ghn": {"max_shape": [8, 8, float("inf"), 3]}}, "ghn must be finite"),
        ({"ghn": {"width": 3}}, "ghn: unknown settings of a GHN: width"),
        ({"lr": "fast"}, "lr must be float, not 'fast'"),
        ({"accumulate": "2"}, "accumulate must be int, not '2'"),
        ({"meta_batch": 2.5}, r"meta_batch must be int, not 2\.5"),
        ({"meta_batch": True}, "meta_batch must be int, not True"),
        ({"widths": 16}, r"widths must be tuple\[int, \.\.\.\] \| None, not 16"),
        ({"widths": (16, "32")}, "widths must be"),
        ({"betas": (0.9,)}, r"betas must be tuple\[float, float\], not \(0\.9,\)"),
        ({"tensorboard": 1}, "tensorboard must be bool, not 1"),
        ({"ghn": 3}, "ghn must be"),
        ({"image_sise": 8}, r"unknown settings: image_sise; did you mean image_size.*\?"),
        ({"foo": 1}, r"unknown settings: foo; help\(ghn_fast.train.TrainConfig\) says"),
    ],
)
def test_impossible_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "it has a list, and settings are a dictionary"),
        ('{"lr": 0.0', "truncated or damaged"),
        ("[" * 100_000, "truncated or damaged"),
        ('{"lr": "fast"}', "lr must be float"),
        ('{"' + "a" * 10_000 + '": 1}', "unknown settings"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        TrainConfig.load(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


def test_what_is_given_counts_before_the_check(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"max_minutes": null}')
    with pytest.raises(ConfigError, match="a run needs an end"):
        TrainConfig.load(path)
    assert TrainConfig.load(path, steps=3).steps == 3


def test_types_of_json_are_taken() -> None:
    config = TrainConfig.from_dict({"lr": 1, "widths": [16], "max_work": None, "betas": [0, 0.9]})
    assert (config.lr, config.widths, config.max_work, config.betas) == (1, (16,), None, (0, 0.9))


def test_the_papers_presets() -> None:
    config = TrainConfig.preset("ghn2-paper")
    rates = [learning_rate(config, 0, epoch / 300) for epoch in (0, 199, 200, 249, 250, 299)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert (config.optimizer, config.weight_decay, config.grad_clip) == ("adam", 1e-5, 5.0)
    assert config.steps is not None
    assert config.steps * config.networks_per_step() == pytest.approx(1.7e6, rel=0.01)
    ghn3 = TrainConfig.preset("ghn3-paper", steps=10_000)
    assert ghn3.steps == 10_000
    assert learning_rate(ghn3, 0, 0.0) < 1e-6
    assert learning_rate(ghn3, 5_000, 0.0) == pytest.approx(4e-4)
    assert learning_rate(ghn3, 9_999, 1.0) == 0
    with pytest.raises(ConfigError, match="unknown preset 'ghn4'; there are default, ghn2-paper"):
        TrainConfig.preset("ghn4")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_built(name: str) -> None:
    config = TrainConfig.preset(name)
    assert make_config({"num_classes": 10, **config.ghn}).num_classes == 10
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"deepnets": 1.0, "lenets": 1.0}, "mixture has no part lenets; there are deepnets, deep"),
        ({"families/lenet": 1.0}, "mixture has no part families/lenet"),
        ({}, "mixture needs parts with positive weights"),
        ({"deepnets": 0.0}, "mixture needs parts with positive weights"),
        ({"deepnets": True}, "mixture needs parts with positive weights"),
        ({"deepnets": float("inf"), "families": 1.0}, "mixture must be finite"),
        ({"deepnets": 1e308, "families": 1e308}, "mixture needs parts with positive weights"),
        ({"deepnets": "all"}, "mixture needs parts with positive weights"),
    ],
)
def test_a_mixture_is_checked(mixture: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(mixture=mixture)
