from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from ghn_fast.cli.errors import UsageError
from ghn_fast.cli.models import build_model, check_num_classes, recipe
from ghn_fast.nets import DeepNets1M, Network, build_net


def test_torchvision() -> None:
    model = build_model("squeezenet1_1", num_classes=7)
    assert model.classifier[1].out_channels == 7


def test_imported() -> None:
    assert isinstance(build_model("tests.graphs:SmallClassifier", num_classes=10), nn.Module)


def named(num_classes: int, *, image_size: int = 0) -> nn.Module:
    return nn.Linear(image_size, num_classes)


def passed_on(**settings: int) -> nn.Module:
    return nn.Linear(5, settings.pop("num_classes"), **settings)


def fixed(**settings: int) -> nn.Module:
    return nn.Linear(5, 10, **settings)


@pytest.mark.parametrize(
    ("name", "features"), [("named", (64, 7)), ("passed_on", (5, 7)), ("INSTANCE", (2, 2))]
)
def test_an_imported_callable_gets_what_it_takes(name: str, features: tuple[int, int]) -> None:
    model = build_model(f"tests.cli.test_models:{name}", 7, 64)
    assert (model.in_features, model.out_features) == features


def test_a_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the command's script, unlike ``python -m``, does not have on its path."""
    (tmp_path / "own_part.py").write_text("from torch.nn import ReLU as Part\n")
    own = "def whole():\n    from own_part import Part\n    return Part()\n"
    (tmp_path / "own_model.py").write_text(own)
    paths = [path for path in sys.path if path not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", [*paths])
    monkeypatch.chdir(tmp_path)
    assert isinstance(build_model("own_model:whole", 10), nn.ReLU)
    assert sys.path == paths


INSTANCE = nn.Linear(2, 2)


def test_what_an_imported_callable_does_not_take() -> None:
    with pytest.raises(UsageError, match=r"cannot be called as \(num_classes=7\): .*unexpected"):
        build_model("tests.cli.test_models:fixed", 7)
    check_num_classes("tests.cli.test_models:INSTANCE", None)
    for name in ("tests.cli.test_models:INSTANCE", "torch.nn:ReLU"):
        with pytest.raises(UsageError, match="has no parameter num_classes"):
            check_num_classes(name, 7)


@pytest.mark.parametrize(("size", "is_large"), [(None, False), (32, False), (64, True)])
def test_a_network_of_deepnets(size: int | None, is_large: bool) -> None:
    net_args = DeepNets1M("val", 0, 4, is_large)[3].net_args
    assert net_args is not None
    expected = Network(num_classes=7, is_imagenet_input=is_large, **net_args).state_dict()
    state = build_model("val:3", 7, size).state_dict()
    assert {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in expected.items()}


def test_the_recipe_of_a_network_is_plain_python() -> None:
    function, arguments = recipe("val:3", 7, 64)
    assert function == "ghn_fast.nets.build_net"
    written = eval(repr(arguments), {})
    assert [*build_net(**written).state_dict()] == [*build_model("val:3", 7, 64).state_dict()]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [("val:3", 33, "33 pixels cannot be"), ("predefined:9", None, "predefined:9: ")],
)
def test_a_network_that_cannot_be(name: str, size: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(name, 7, size)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet55", r"no torchvision model is called 'resnet55'; did you mean resnet"),
        ("zzz", "no torchvision model is called 'zzz'; for example alexnet"),
        ("r3d_18", "torchvision's r3d_18 is not known by name, .* as package.module:callable"),
        ("tests.graphs:Missing", "cannot import 'tests.graphs:Missing'"),
        ("no_such_package:f", "cannot import"),
        ("my/nets.py:Net", "a module has no .py: my.nets:Net"),
        ("os:getpid", "made a int, not a torch"),
    ],
)
def test_unknown(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(name, num_classes=10)
