"""What objects show of themselves in a shell: a line, whatever is in them."""

from __future__ import annotations

import pytest
import torch

import ghn_fast
from ghn_fast.data import EncodedImages, Images
from ghn_fast.evaluation import EvaluationResult, NetworkResult
from tests.graphs import SmallClassifier


def _shown() -> list[tuple[object, str]]:
    _, report = ghn_fast.predict(SmallClassifier(), return_report=True)
    labels = torch.zeros(1000, dtype=torch.int64)
    results = [NetworkResult(index, 50.0 + index, 1, 0.1) for index in range(3)]
    return [
        (report, "5 of 5 tensors, 322 of 322 parameters"),
        (
            Images(torch.zeros(1000, 3, 32, 32, dtype=torch.uint8), labels),
            "mean 0.491, 0.482, 0.447, std 0.247, 0.243, 0.262)",
        ),
        (EncodedImages([b""] * 1000, labels, 5, 64), "1,000 as 64 x 64, 5 classes"),
        (ghn_fast.ghn2(), "hid=32, blocks of 64x64x11x11, 10 classes"),
        (EvaluationResult("test", 0, "ghn", 9, 3, results), "3 networks: 51.0 ± 0.6 %"),
        (EvaluationResult("test", 0, "ghn", 9, 3), "0 networks"),
        (
            ghn_fast.DeepNets1M("test"),
            "test, 500 networks of seed 0, for 32 x 32 images",
        ),
    ]


@pytest.mark.parametrize("number", range(7))
def test_a_line_says_what_it_is(number: int) -> None:
    shown, part = _shown()[number]
    text = repr(shown)
    assert text.startswith(type(shown).__name__ + "(")
    assert part in text
    assert len(text) < 120
    assert "\n" not in text


def test_a_report_is_a_table_in_a_notebook() -> None:
    _, report = ghn_fast.predict(SmallClassifier(), return_report=True)
    report.unpredicted["own.<weight>"] = "why & how"
    text = report._repr_html_()
    assert text.count("<tr>") == 1 + len(report.predicted) + 1
    assert "<td>conv.weight</td><td>8 x 3 x 3 x 3</td>" in text
    assert "<td>own.&lt;weight&gt;</td><td></td><td>why &amp; how</td>" in text
