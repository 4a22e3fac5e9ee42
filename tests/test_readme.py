"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def block(containing: str) -> str:
    """The one Python example with this text."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return str(found)


def test_predicting() -> None:
    names: dict[str, Any] = {}
    exec(block("return_report=True"), names)
    assert not names["report"].unpredicted


def test_a_loop_of_ones_own(generator: torch.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.randn(28, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (28,), generator=generator)
    batches = zip(images.split(16), labels.split(16), strict=True)  # the last has 12
    names: dict[str, Any] = {"loader": list(batches)}
    exec(block("train_step("), names)
    assert names["result"].updated
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"]
