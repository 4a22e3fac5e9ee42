from __future__ import annotations

from typing import Any

import pytest
import torch

from ghn_fast._system.processes import Processes
from ghn_fast.cli.images import load_parts
from ghn_fast.data import Images

NO_IMAGES = Images(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("rank", "download", "wanted"),
    [
        (0, True, ["train", "test", "meet"]),
        (1, True, ["meet", "train", "test"]),
        (1, False, ["train", "test"]),
    ],
)
def test_the_first_process_downloads_before_the_others_read(
    monkeypatch: pytest.MonkeyPatch, rank: int, download: bool, wanted: list[str]
) -> None:
    done: list[str] = []

    def load(source: None, split: str, *settings: object) -> Images:
        done.append(split)
        return NO_IMAGES

    def meet(self: Processes, value: Any) -> list[Any]:
        done.append("meet")
        return [value]

    monkeypatch.setattr("ghn_fast.data.load_images", load)
    monkeypatch.setattr(Processes, "gather", meet)
    parts = load_parts(Processes(rank, 2), None, ("train", "test"), 32, download)
    assert parts == [NO_IMAGES, NO_IMAGES]
    assert done == wanted
