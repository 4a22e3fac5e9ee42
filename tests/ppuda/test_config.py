from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ghn_fast.ppuda.config import init_config


def parse(monkeypatch: pytest.MonkeyPatch, line: str, **options: object) -> dict[str, object]:
    monkeypatch.setattr(sys, "argv", ["program", *line.split()])
    return vars(init_config(**options))  # type: ignore[arg-type]


def test_evaluation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    args = parse(monkeypatch, "--ckpt a.pt -d cifar10 --split test --arch 4 -s 7")
    assert (args["ckpt"], args["split"], args["arch"]) == ("a.pt", "test", "4")
    assert (args["test_batch_size"], args["noise"], args["imsize"]) == (64, False, 32)
    assert torch.initial_seed() == 7
    assert "a.pt" in capsys.readouterr().out
    args = parse(monkeypatch, "-d imagenet", verbose=False, split="deep")
    assert (args["split"], args["imsize"], args["num_workers"]) == ("deep", 224, 8)
    assert capsys.readouterr().out == ""


def test_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = f"-m 8 -n -v 50 --ln --name mine -S {tmp_path} --lr_steps 3,5"
    args = parse(monkeypatch, line, mode="train_ghn", verbose=False)
    assert (args["meta_batch_size"], args["virtual_edges"]) == (8, 50)
    assert (args["ln"], args["weight_norm"], args["hypernet"]) == (True, True, "gatedgnn")
    assert args["max_shape"] == (64, 64, 11, 11)
    assert args["lr_steps"] == [3, 5]
    assert args["batch_size"] == 64
    assert Path(str(args["save"])).is_dir()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--hid 16", (32, 32, 11, 11)),
        ("-d imagenet --max_shape 48", (48, 48, 16, 16)),
        ("--max_shape 48,24", (48, 24, 11, 11)),
        ("--max_shape 48,24,7,7", (48, 24, 7, 7)),
    ],
)
def test_largest_block(
    line: str, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = parse(monkeypatch, f"{line} --save_dir none", mode="train_ghn", verbose=False)
    assert args["max_shape"] == expected
    assert args["save"] is None


def test_what_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotImplementedError, match="several GPUs"):
        parse(monkeypatch, "--multigpu", mode="train_ghn")
    with pytest.raises(NotImplementedError, match="train_net"):
        parse(monkeypatch, "", mode="train_net")
    with pytest.raises(ValueError, match="max_shape"):
        parse(monkeypatch, "--max_shape 1,2,3", mode="train_ghn", verbose=False)
