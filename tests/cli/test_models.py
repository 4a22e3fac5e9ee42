from __future__ import annotations

import pytest
from torch import nn

from ghn_fast.cli.errors import UsageError
from ghn_fast.cli.models import build_model


def test_torchvision() -> None:
    model = build_model("squeezenet1_1", num_classes=7)
    assert model.classifier[1].out_channels == 7


def test_imported() -> None:
    assert isinstance(build_model("tests.graphs:SmallClassifier", num_classes=10), nn.Module)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet55", r"no torchvision model is called 'resnet55'; did you mean resnet"),
        ("zzz", "no torchvision model is called 'zzz'; for example alexnet"),
        ("tests.graphs:Missing", "cannot import 'tests.graphs:Missing'"),
        ("no_such_package:f", "cannot import"),
        ("os:getpid", "made a int, not a torch"),
    ],
)
def test_unknown(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(name, num_classes=10)
