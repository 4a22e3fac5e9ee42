"""``ghn-fast fit``: a folder of pictures becomes a classifier that loads without ghn_fast."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_model
from torch import nn

from ghn_fast.cli import main
from ghn_fast.cli.errors import UsageError
from ghn_fast.cli.fit import _replaced_layers
from ghn_fast.cli.teacher import load_teacher
from ghn_fast.data import Images, load_images
from ghn_fast.data.images import CIFAR10_MEAN
from ghn_fast.finetune import History
from ghn_fast.ghn import ghn2
from ghn_fast.nets import adjust_net
from tests.data.test_load import write_parquet
from tests.graphs import SmallClassifier
from tests.test_finetune import Versioned

NAMES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three colours, in train and test folders."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for place, name in enumerate(NAMES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 120, (40, 40, 3), dtype=np.uint8)
                pixels[:, :, 2 - place] += 80
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["ghn-fast", "fit", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    try:
        main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def small() -> nn.Module:
    torch.manual_seed(0)
    return SmallClassifier(num_classes=3)


def on_cpu() -> nn.Module:
    with torch.device("cpu"):
        return small()


def ten() -> nn.Module:
    return SmallClassifier(num_classes=10)


class Grey(SmallClassifier):
    def __init__(self) -> None:
        super().__init__(num_classes=3)
        self.conv = nn.Conv2d(1, 8, 3)


class Pooled(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            *(nn.BatchNorm1d(8), nn.Linear(8, 3)),
        )


class Untracked(nn.Module):
    """Wide, without running statistics, as all of DeepNets-1M are; returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 64, 3, bias=False)
        self.norm = nn.BatchNorm2d(64, track_running_stats=False)
        self.inner = nn.Conv2d(64, 64, 3, bias=False)
        self.fc = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.inner(self.norm(self.conv(x)).relu()).relu()
        return {"logits": self.fc(features.mean((2, 3)))}


INSTANCE = small()
SMALL, UNTRACKED = "tests.cli.test_fit:small", "tests.cli.test_fit:Untracked"


def loaded(path: Path) -> tuple[nn.Module, dict[str, str]]:
    """By the lines of Python in the file's metadata."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert "ghn_fast" not in metadata["load"]
    names: dict[str, object] = {"path": str(path)}
    exec(metadata["load"], names)
    model = names["model"]
    assert isinstance(model, nn.Module)
    return model, metadata


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "timm/test_vit"])
def test_the_file_loads_with_its_library_and_says_how_to_normalise(
    name: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    out = tmp_path / "model.safetensors"
    assert run(monkeypatch, name, "--data", pictures, "--out", out) == 0
    text = capsys.readouterr().out
    assert "54 to train with, 6 to choose by, 18 to test with, of 3 classes, 32 x 32" in text
    assert re.search("normalised as .*: mean 0.491", text)
    assert "% of 18 test pictures (chance is 33.3 %)" in text
    model, metadata = loaded(out)
    assert json.loads(metadata["classes"]) == list(NAMES)
    assert json.loads(metadata["mean"]) == pytest.approx(CIFAR10_MEAN)
    test = load_images(pictures, "test", int(metadata["image_size"]))
    assert isinstance(test, Images)
    mean, std = (torch.tensor(json.loads(metadata[key])).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        right = model((test.images / 255 - mean) / std).argmax(1) == test.labels
    assert 100 * float(right.double().mean()) == pytest.approx(float(metadata["top1"]), abs=0.1)
    assert float(metadata["top1"]) > 60
    assert list(tmp_path.iterdir()) == [out]
    teacher = load_teacher(str(out), list(NAMES), 8)
    assert (teacher.mean, teacher.std) == tuple(
        json.loads(metadata[key]) for key in ("mean", "std")
    )
    pixels = (test.images / 255 - mean) / std
    with torch.no_grad():
        torch.testing.assert_close(teacher.model.eval()(pixels), model(pixels))


def test_an_own_model_has_as_many_outputs_as_there_are_classes(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "model.safetensors"
    for name, outputs in (("tests.graphs:SmallClassifier", 3), ("tests.cli.test_fit:ten", 10)):
        assert run(monkeypatch, name, "--data", pictures, "--out", out) == 0
        model, _ = loaded(out)
        assert model.fc.out_features == outputs
        said = f"{name} has 10 outputs for 3 classes" in capsys.readouterr().out
        assert said == (outputs == 10)


def test_pictures_are_as_those_that_the_ghn_was_trained_with(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    of_images = {"mean": (0.5, 0.25, 0.125), "std": (0.5, 0.5, 0.25), "image_size": 16}
    ghn = ghn2(num_classes=3, hid=8, max_shape=(8, 8, 3, 3), **of_images)
    ghn.save_pretrained(tmp_path / "ghn")
    out = tmp_path / "model.safetensors"
    arguments = (SMALL, "--data", pictures, "--out", out, "--ghn", tmp_path / "ghn")
    assert run(monkeypatch, *arguments) == 0
    text = capsys.readouterr().out
    assert "of 3 classes, 16 x 16" in text
    assert "what the GHN was trained with: mean 0.500, 0.250, 0.125, deviation 0.500" in text
    metadata = loaded(out)[1]
    assert json.loads(metadata["mean"]) == [0.5, 0.25, 0.125]
    assert (metadata["image_size"], metadata["crop"]) == ("16", "1")
    assert run(monkeypatch, *arguments, "--normalise", "imagenet", "--image-size", 40) == 0
    assert "normalised as imagenet: mean 0.485" in capsys.readouterr().out
    assert loaded(out)[1]["crop"] == "0.875"


def test_files_that_are_no_teachers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    metadata = {"model": SMALL, "classes": json.dumps(NAMES)}
    save_model(small(), path, metadata)
    assert load_teacher(f"{SMALL}@{path}", list(NAMES), 32).mean is None
    with pytest.raises(UsageError, match=r"would have to be imported: .* give tests.cli.test_fit"):
        load_teacher(str(path), list(NAMES), 32)
    with pytest.raises(UsageError, match=r"is of 3 classes \(blue, green, red\), the images of 2"):
        load_teacher(f"{SMALL}@{path}", ["blue", "green"], 32)
    with pytest.raises(UsageError, match="does not have the weights of that model"):
        load_teacher(f"resnet18@{path}", list(NAMES), 32)
    with pytest.raises(UsageError, match="cannot be read as a teacher"):
        load_teacher(str(tmp_path / "none"), list(NAMES), 32)


def test_training_beside_a_random_start(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "model.safetensors"
    options = ("--epochs", 2, "--compare", "random", "--refine", "--no-progress")
    assert run(monkeypatch, SMALL, "--data", pictures, "--out", out, *options) == 0
    text = capsys.readouterr().out
    for start in ("refined", "random"):
        assert f"{start}, epoch 2: loss" in text
        assert f"{start}: output layer fc" in text
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "model.png"}
    metadata = loaded(out)[1]
    said = rf"{metadata['start']}, epoch {metadata['epochs']}: .*?([0-9.]+) % of 18"
    assert re.findall(said, text) == [metadata["top1"]]


@pytest.mark.parametrize("name", [SMALL, UNTRACKED])
def test_an_interrupted_fit_goes_on(
    name: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ghn_fast.finetune

    arguments = (name, "--data", pictures, "--epochs", 3, "--no-progress", "--out")
    whole, out = tmp_path / "whole.safetensors", tmp_path / "model.safetensors"
    assert run(monkeypatch, *arguments, whole) == 0
    append = ghn_fast.finetune._Tuning.keep

    def keep(self: ghn_fast.finetune._Tuning, epoch: int) -> None:
        append(self, epoch)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(ghn_fast.finetune._Tuning, "keep", keep)
        assert run(stopping, *arguments, out) == 130
    (unfinished,) = tmp_path.glob("model-*.unfinished")
    assert "interrupted: the same command goes on" in capsys.readouterr().out
    assert run(monkeypatch, *arguments, out, "--lr", 0.1) == 1
    said = capsys.readouterr()
    assert "going on" not in said.out
    assert re.search(
        r"other settings \(lr: 0\.001 -> 0\.1\).* another place .* \(--out\)$", said.err
    )
    assert run(monkeypatch, *arguments, out, "--no-refine") == 1
    assert "best of predicted/refined/random -> best of predicted/random" in capsys.readouterr().err
    assert run(monkeypatch, *arguments, out) == 0
    assert re.search("going on from .*unfinished, after epoch 1\n", capsys.readouterr().out)
    one, other = (load_file(path) for path in (whole, out))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert not unfinished.exists()
    assert load_teacher(f"{name}@{out}", list(NAMES), 32).mean is not None


def test_an_interrupted_fit_does_not_go_on_with_other_pictures(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They would be divided otherwise, and tested ones be among those that were trained with."""
    import ghn_fast.finetune

    folder = tmp_path / "some"
    shutil.copytree(pictures / "train", folder)
    out = tmp_path / "model.safetensors"
    arguments = (SMALL, "--data", folder, "--epochs", 1, "--no-progress", "--out", out)

    def stop(self: ghn_fast.finetune._Tuning) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(ghn_fast.finetune._Tuning, "take_best", stop)
        assert run(stopping, *arguments) == 130
    (folder / "red" / "0.png").unlink()
    assert run(monkeypatch, *arguments) == 1
    said = r"other settings \(name: pictures \w+ -> pictures \w+\)"
    assert re.search(said, capsys.readouterr().err)


def test_a_training_that_diverges_gives_what_came_before(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "model.safetensors"
    options = ("--epochs", 2, "--lr", 1e30, "--no-progress", "--start", "predicted")
    assert run(monkeypatch, SMALL, "--data", pictures, "--out", out, *options) == 0
    text = capsys.readouterr().out
    assert "a smaller learning rate than" in text
    assert "its best epoch is kept" in text
    assert loaded(out)[1]["epochs"] == "0"


def test_classes_without_a_picture_to_train_with_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "pictures.parquet"
    write_parquet(file, [0, 2] * 20, [*NAMES])
    assert run(monkeypatch, SMALL, "--data", file, "--out", tmp_path / "model.safetensors") == 0
    text = capsys.readouterr().out
    assert "29 to train with, 3 to choose by, 8 to test with, of 3 classes" in text
    assert "never predicted, without a picture: green\n" in text


def spoil(
    monkeypatch: pytest.MonkeyPatch, start: str, how: Callable[[torch.Tensor], object]
) -> None:
    """What is done to the first weight of one of the starts."""
    import ghn_fast.cli.fit
    import ghn_fast.start

    where, name = {
        "predicted": (ghn_fast.start, "predict"),
        "random": (ghn_fast.cli.fit._Job, "build_plain"),
    }[start]
    make = getattr(where, name)

    def spoilt(job_or_model: Any, *arguments: Any, **keywords: Any) -> Any:
        made = make(job_or_model, *arguments, **keywords)
        model = job_or_model if start == "predicted" else made
        how(next(model.parameters()))
        return made

    monkeypatch.setattr(where, name, spoilt)


def test_a_prediction_that_cannot_be_used_leaves_the_random_start(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(monkeypatch, "predicted", lambda weight: nn.init.constant_(weight, torch.inf))
    out = tmp_path / "model.safetensors"
    assert run(monkeypatch, SMALL, "--data", pictures, "--out", out) == 0
    assert "predicted cannot be used" in capsys.readouterr().out
    assert loaded(out)[1]["start"] == "random"
    options = ("--compare", "random", "--epochs", 1, "--no-progress")
    assert run(monkeypatch, SMALL, "--data", pictures, "--out", out, *options) == 0
    text = capsys.readouterr().out
    assert "predicted cannot be used" in text
    assert "random, epoch 1" in text
    assert out.with_suffix(".png").exists()


def versioned() -> nn.Module:
    return Versioned()


def test_a_model_that_looks_for_versions_is_written_and_loads(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.safetensors"
    name = "tests.cli.test_fit:versioned"
    assert run(monkeypatch, name, "--data", pictures, "--out", out, "--start", "random") == 0
    model, _ = loaded(out)
    assert torch.equal(model.fc.weight, load_file(out)["fc.weight"])


@pytest.fixture(params=["random", "predicted"])
def better(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The start that is not spoilt; all features of the other one are nearly the same."""
    start: str = request.param
    spoil(monkeypatch, _other(start), lambda weight: nn.init.zeros_(weight[1:]))
    return start


def _other(start: str) -> str:
    return "predicted" if start == "random" else "random"


def test_the_better_start_is_kept(
    better: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ghn_fast.start.TRIAL_PICTURES", 40)
    monkeypatch.setattr("ghn_fast.start.TRIAL_OF_CLASS", 1)
    out = tmp_path / "model.safetensors"
    assert run(monkeypatch, SMALL, "--data", pictures, "--out", out) == 0
    text = capsys.readouterr().out
    assert ("prediction does not help here" in text) == (better == "random")
    assert f"{better}, epoch 0:" in text
    assert "fitted to 40 pictures" in text
    assert f"{better}: output layer fc (8 features, 3 classes) fitted to 54 pictures" in text
    assert loaded(out)[1]["start"] == better
    assert run(monkeypatch, SMALL, "--data", pictures, "--out", out, "--start", "random") == 0
    assert "predicted" not in capsys.readouterr().out


def test_compared_the_one_that_ends_ahead_is_written_and_named(
    better: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whichever start was asked for."""
    out = tmp_path / "model.safetensors"
    options = ("--start", _other(better), "--compare", "random")
    assert run(monkeypatch, SMALL, "--data", pictures, "--out", out, *options) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"wrote {out}, the {better} start without training; how it is loaded")
    assert loaded(out)[1]["start"] == better


def test_the_refined_start_is_what_random_is_compared_with(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--start", "refined", "--compare", "random")
    out = tmp_path / "model.safetensors"
    assert run(monkeypatch, SMALL, "--data", pictures, "--out", out, *options) == 0
    text = capsys.readouterr().out
    assert re.findall("^(.*): output layer", text, re.MULTILINE) == ["refined", "random"]


def test_where_random_is_ahead_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    from ghn_fast.cli.fit import _tell_result

    ahead, behind = History([50.0, 55.0], [60.0, 70.0], [1.0]), History([50.0], [40.0])
    _tell_result({"predicted": behind, "random": ahead}, 10)
    text = capsys.readouterr().out
    assert "prediction does not help here" in text
    assert "random: 70.0 % after epoch 1 of 1, 55.0 % of 10 pictures to choose by\n" in text
    assert "predicted: 40.0 % without training, 50.0 % of 10 pictures to choose by\n" in text
    for others in ({"predicted": ahead, "random": behind}, {"random": ahead}):
        _tell_result(others, 10)
        assert "does not help" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet18", "--compare", "sgd"), "--compare takes random"),
        (("resnet18", "--start", "mine"), "--start takes best, predicted, refined, random, not"),
        (("resnet18", "--start", "refined", "--no-refine"), "--start refined is refined, and"),
        (("resnet18", "--start", "random", "--refine"), "--refine refines what is predicted"),
        (("tests.cli.test_fit:Grey",), "as RGB, also grey ones: the first layer of tests.cli.test"),
        (("resnet18", "--normalise", "mine"), "--normalise takes auto, cifar10, imagenet"),
        (("resnet81", "--image-size", 32), "did you mean resnet18"),
        (("maxvit_t", "--image-size", 32), "maxvit_t cannot be made for images of 32 pixels"),
        (("vit_b_16", "--image-size", 40), "vit_b_16 cannot be made for images of 40 pixels"),
        (("alexnet", "--image-size", 8), "alexnet cannot take pictures of 8 pixels"),
        (("val:3", "--image-size", 33), "images of 33 pixels cannot be, multiples of 32 can"),
        (("tests.cli.test_fit:INSTANCE",), "is the same model each time"),
        (("vit_b_16", "--small-images"), "has no stem that --small-images could fit"),
        (("inception_v3", "--image-size", 96, "--epochs", 1), "cannot take pictures of 96 pixels"),
        (("resnet18", "--out", "."), "--out is the file of the model"),
        (
            ("tests.cli.test_fit:Pooled", "--batch-size", 1, "--epochs", 1),
            "Pooled cannot be trained with one picture at a time: --batch-size 2 or more",
        ),
        (("resnet18", "--lr", -1), "--lr takes more than 0, not -1"),
        (("resnet18", "--lr", "nan"), "--lr takes more than 0, not nan"),
        (("resnet18", "--data", "none", "--device", "cuda:99"), "device cuda:99 is not there"),
        (("resnet18", "--out", "a.pth"), "the file is safetensors: call it a.safetensors"),
        (("resnet18", "--out", "a.png"), "--out is the file of the model"),
        (("resnet18", "--out", "none/a.safetensors"), "is in a folder that does not exist"),
    ],
)
def test_what_cannot_be_done_is_refused_first(
    arguments: tuple[object, ...],
    message: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "model.safetensors"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    assert run(monkeypatch, arguments[0], "--data", pictures, "--out", out, *arguments[1:]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_default_device_makes_no_difference(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a module that is imported may have set; the meta device stands for a GPU."""
    written = []
    for device in ("cpu", "meta"):
        out = tmp_path / f"{device}.safetensors"
        of = ("tests.cli.test_fit:on_cpu", "--data", pictures, "--out", out)
        with torch.device(device):
            assert run(monkeypatch, *of, "--refine", "--epochs", 1) == 0
        written.append(load_file(out))
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(value, written[1][name]) for name, value in written[0].items())


class SamePadded(nn.Conv2d):
    """A library's own kind of convolution."""


class OwnPool(nn.MaxPool2d):
    """A library's own kind of pool."""


POOLS = [
    lambda: nn.AvgPool2d(2),
    lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    lambda: OwnPool(2),
]


@pytest.mark.parametrize("pool", POOLS)
def test_what_is_written_gives_fitted_layers_back(pool: Callable[[], nn.Module]) -> None:
    def plain() -> nn.Module:
        later = (nn.Conv2d(4, 4, 3, 2, 1) for _ in range(3))
        return nn.Sequential(SamePadded(3, 4, 3, 2, 1), pool(), *later)

    fitted, loaded = adjust_net(plain()), plain()
    lines = _replaced_layers(plain(), fitted)
    assert len(lines) == 2
    exec("\n".join(lines), {"model": loaded, "torch": torch})
    loaded.load_state_dict(fitted.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), fitted(images))
