from __future__ import annotations

import io
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from ghn_fast.checkpoint import save
from ghn_fast.cli import main
from ghn_fast.cli.options import DEFAULT_GHN
from ghn_fast.ghn import ghn2
from ghn_fast.ghn.hub import DEFAULT
from ghn_fast.train import Trainer
from tests.graphs import SmallClassifier


@pytest.fixture(scope="module")
def ghn_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("ghn") / "ghn.safetensors"
    save(ghn2(max_shape=(16, 16, 3, 3)), path)
    return path


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of noise in the layout of the real one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("cifar10")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 5200), ("test", 80)):
        pixels = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(buffer, format="PNG")
        images = [{"bytes": buffer.getvalue(), "path": None}] * count
        table = pa.table({"img": images, "label": [index % 10 for index in range(count)]})
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet")
    return root


class OfPairs(SmallClassifier):
    """Cannot be called with anything that could be guessed."""

    def forward(self, pair: Any) -> torch.Tensor:  # type: ignore[override]
        return super().forward(pair.left + pair.right)


@pytest.fixture(autouse=True)
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """What was asked for, as doing it would last for all other tests of this process."""
    calls: list[None] = []
    monkeypatch.setattr("ghn_fast.train.denormals.flush_denormals", lambda: calls.append(None))
    return calls


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["ghn-fast", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    try:
        main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "resnet18", "--num-classes", -3),
        ("eval", "--image-size", -5),
        ("eval", "--image-size", 0),
    ],
)
def test_impossible_sizes_are_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...]
) -> None:
    assert run(monkeypatch, *arguments) == 2


def test_predict_prints_and_writes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    ghn_file: Path,
    cifar10: Path,
) -> None:
    out = tmp_path / "model.safetensors"
    name = "tests.graphs:SmallClassifier"
    arguments = ("--ghn", ghn_file, "--data", cifar10, "--images", 64, "--out", out)
    assert run(monkeypatch, "predict", name, *arguments) == 0
    printed = capsys.readouterr().out
    total = sum(parameter.numel() for parameter in SmallClassifier().parameters())
    assert f"{total:,}" in printed
    stages = re.search(r"predicted in (\S+) s \(graph (\S+) s, predict (\S+) s\); loading", printed)
    assert stages is not None
    whole, *parts = (float(seconds) for seconds in stages.groups())
    assert whole == pytest.approx(sum(parts), abs=2e-3)
    assert "top-1 on 64 CIFAR-10 test images, batch statistics of 64: 1" in printed

    with safe_open(out, "pt") as written:
        assert set(written.keys()) >= {"conv.weight", "bn.weight", "fc.bias"}
        assert written.metadata()["model"] == name
    assert list(tmp_path.iterdir()) == [out]
    arguments = ("--ghn", ghn_file, "--data", cifar10, "--images", 16)
    assert run(monkeypatch, "predict", name, *arguments) == 0
    assert "CIFAR-10 test images, batch statistics of 16: " in capsys.readouterr().out


def test_a_card_is_html(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ghn_file: Path,
    tmp_path: Path,
) -> None:
    arguments = ("tests.graphs:SmallClassifier", "--ghn", ghn_file, "--card", tmp_path / "x.txt")
    assert run(monkeypatch, "predict", *arguments) == 1
    assert "the file is HTML: call it x.html" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("accuracy", "guesses"), [(11.0, True), (30.0, False)])
def test_what_guessing_gives_is_said(
    accuracy: float,
    guesses: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cifar10: Path,
) -> None:
    from ghn_fast.cli.predict import _print_accuracy
    from ghn_fast.data import load_cifar10

    monkeypatch.setattr("ghn_fast.evaluation.top1", lambda *arguments: accuracy)
    _print_accuracy(SmallClassifier(), load_cifar10(cifar10, "test"), 64)
    assert ("the prediction does not help this model" in capsys.readouterr().out) == guesses
    _print_accuracy(SmallClassifier(), load_cifar10(cifar10, "test"), 64, is_whole=False)
    printed = capsys.readouterr().out
    assert ("guessing gives, by a model that was predicted in part" in printed) == guesses
    assert "does not help" not in printed


def test_predict_reports_what_it_did_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ghn_file: Path
) -> None:
    arguments = ("predict", "squeezenet1_1", "--ghn", ghn_file, "--no-small-images")
    assert run(monkeypatch, *arguments, "--num-classes", 10) == 0
    assert "not predicted" not in capsys.readouterr().out
    assert run(monkeypatch, "predict", "resnet18", "--ghn", ghn_file, "--num-classes", 7) == 0
    assert "fc.weight, fc.bias: output layer of 7; this GHN predicts 10" in capsys.readouterr().out


@pytest.mark.parametrize("option", [("--input", "3x9x9"), ("--input-ids", 4)])
def test_predict_calls_the_model_as_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ghn_file: Path,
    option: tuple[str, object],
) -> None:
    seen = []
    monkeypatch.setattr(
        "ghn_fast.prediction.predict",
        lambda model, ghn, inputs, **options: seen.append(inputs) or sys.exit(0),
    )
    run(monkeypatch, "predict", "tests.graphs:SmallClassifier", "--ghn", ghn_file, *option)
    (inputs,) = seen[0]
    assert inputs.shape == ((2, 3, 9, 9) if option[0] == "--input" else (2, 4))


@pytest.mark.parametrize(
    "arguments", [("resnet18", "--input", "1x64x64"), ("tests.cli.test_cli:OfPairs",)]
)
def test_predict_says_by_which_options_a_model_is_called(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ghn_file: Path,
    arguments: tuple[str, ...],
) -> None:
    assert run(monkeypatch, "predict", *arguments, "--ghn", ghn_file) == 1
    printed = capsys.readouterr().err
    assert "could not be run" in printed
    assert "--input (3x64x64), how many token ids as --input-ids" in printed
    assert "pass example_inputs" not in printed


def test_predict_keeps_and_limits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ghn_file: Path
) -> None:
    model = ("predict", "tests.graphs:SmallClassifier", "--ghn", ghn_file, "--no-small-images")
    assert run(monkeypatch, *model, "--keep", "bn", "--keep", "*.bias") == 0
    printed = capsys.readouterr().out
    assert "bn.weight: kept: as asked (keep='bn')" in printed
    assert "bn.bias, fc.bias: kept: as asked (keep='*.bias')" in printed
    assert "fc.weight: kept" not in printed
    assert run(monkeypatch, *model, "--only", "conv.weight", "--fill") == 0
    kept = "bn.weight, bn.bias, fc.weight and 1 more: kept: as asked (not among only=...)"
    assert kept in capsys.readouterr().out
    assert run(monkeypatch, *model, "--keep", "layer9") != 0
    assert "no parameter is called 'layer9'" in capsys.readouterr().err


def test_predict_makes_the_folder_of_what_it_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ghn_file: Path
) -> None:
    out, plain = tmp_path / "new" / "model.safetensors", tmp_path / "plain"
    plain.touch()
    arguments = ("predict", "tests.graphs:SmallClassifier", "--ghn", ghn_file, "--no-small-images")
    assert run(monkeypatch, *arguments, "--out", out) == 0
    assert list(out.parent.iterdir()) == [out]
    assert out.stat().st_mode == plain.stat().st_mode


def test_predict_says_what_it_cannot_write(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    ghn_file: Path,
) -> None:
    def fail(*arguments: object, **metadata: object) -> None:
        raise SafetensorError("the disk is full")

    monkeypatch.setattr("safetensors.torch.save_model", fail)
    out = tmp_path / "model.safetensors"
    arguments = ("predict", "tests.graphs:SmallClassifier", "--ghn", ghn_file, "--no-small-images")
    assert run(monkeypatch, *arguments, "--out", out) == 1
    assert f"error: cannot write {out} (the disk is full)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_predict_says_that_it_does_not_use_the_data(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ghn_file: Path,
    cifar10: Path,
) -> None:
    name = "tests.graphs:SmallClassifier"
    options = ("--ghn", ghn_file, "--no-small-images")
    assert run(monkeypatch, "predict", name, *options, "--data", cifar10) == 0
    assert "accuracy: not measured, as CIFAR-10 is for" in capsys.readouterr().out
    assert run(monkeypatch, "predict", name, *options) == 0
    assert "accuracy: not measured, as CIFAR-10 is for" in capsys.readouterr().out


SLOW_IMPORT = """
import time
from tests.graphs import SmallClassifier
time.sleep(100)
def model():
    time.sleep(1)
    return SmallClassifier()
"""


def test_random_initialisation_is_timed_without_imports_and_made_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ghn_file: Path,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "perf_counter", lambda: sum(slept))
    (tmp_path / "slowly_imported.py").write_text(SLOW_IMPORT)
    monkeypatch.chdir(tmp_path)
    name = "slowly_imported:model"
    assert run(monkeypatch, "predict", name, "--ghn", ghn_file, "--no-small-images") == 0
    assert "random initialisation took 1.000 s" in capsys.readouterr().out
    assert slept == [100, 1]


def test_predict_measures_no_model_of_other_classes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ghn_file: Path,
    cifar10: Path,
) -> None:
    arguments = ("--ghn", ghn_file, "--data", cifar10, "--images", 8, "--num-classes", 7)
    assert run(monkeypatch, "predict", "resnet18", *arguments) == 0
    printed = capsys.readouterr().out
    assert "accuracy: not measured, the model has 7 classes and CIFAR-10 has 10" in printed
    assert "top-1" not in printed


def test_predict_measures_no_model_of_other_pictures(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ghn_file: Path,
    cifar10: Path,
    tmp_path: Path,
) -> None:
    arguments = ("--ghn", ghn_file, "--data", cifar10, "--card", tmp_path / "card.html")
    assert run(monkeypatch, "predict", "vit_b_32", *arguments) == 0
    assert "the model does not classify RGB images of 32 pixels" in capsys.readouterr().out
    assert (tmp_path / "card.html").exists()


@pytest.mark.parametrize("images", [1, 8])
def test_predict_measures_a_model_of_named_outputs(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ghn_file: Path,
    cifar10: Path,
    images: int,
) -> None:
    arguments = ("--ghn", ghn_file, "--data", cifar10, "--images", images)
    assert run(monkeypatch, "predict", "tests.graphs:NamedOutputs", *arguments) == 0
    assert f"top-1 on {images} CIFAR-10 test images" in capsys.readouterr().out


def test_a_missing_package_is_one_line_that_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert run(monkeypatch, "nets", "export", "--split", "val", "--out", tmp_path) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "pip install 'ghn-fast[nets]'" in printed
    assert len(printed.splitlines()) == 1


def test_train_resume_and_eval(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    cifar10: Path,
    flushes: list[None],
) -> None:
    run_folder = tmp_path / "run"
    settings = [
        *("--set", "meta_batch=2", "--set", "image_batch=4", "--set", "widths=[16]"),
        *("--set", "max_work=5", "--set", 'ghn={"max_shape": [16, 16, 3, 3]}'),
        *("--set", "validate_every=0", "--set", "threads=1", "--set", "max_minutes=null"),
    ]
    common = ("--out", run_folder, "--data", cifar10, "--no-progress")
    assert run(monkeypatch, "train", *common, "--steps", 2, *settings) == 0  # --steps is its end
    printed = capsys.readouterr().out
    assert "step 2" in printed
    assert "warm-up: 0 steps, a tenth of the run, instead of 200" in printed
    assert run(monkeypatch, "train", *common) == 0
    printed = capsys.readouterr().out
    assert "this run is finished already" in printed
    assert f"--set init={run_folder / 'ghn.safetensors'}" in printed
    assert "going on" not in printed
    assert run(monkeypatch, "train", *common, "--steps", 4) == 1
    assert f"--set init={run_folder / 'ghn.safetensors'}" in capsys.readouterr().err
    assert len(flushes) == 3

    results = tmp_path / "results"
    arguments = ("--data", cifar10, "--num-nets", 2, "--images", 64, "--random", "--out", results)
    assert run(monkeypatch, "eval", "--ghn", run_folder, *arguments) == 0
    printed = capsys.readouterr().out
    assert "top-1 in % on 64 test images" in printed
    assert "statistics of batches of 64" in printed
    assert "random initialisation" in printed
    assert "GHN-2, published" in printed
    assert {path.name for path in results.iterdir()} == {"test-ghn.jsonl", "test-random.jsonl"}

    one = ("--data", cifar10, "--num-nets", 1, "--images", 8)
    assert run(monkeypatch, "eval", "--ghn", run_folder, *one) == 0
    printed = capsys.readouterr().out
    assert "statistics of batches of 8" in " ".join(printed.split())
    row = next(line for line in printed.splitlines() if "test" in line and line.count("│") == 9)
    assert [cell.strip() for cell in row.split("│")][5:7] == ["-", "-"]

    assert run(monkeypatch, "plot", run_folder, "--out", tmp_path / "plot.png") == 0
    assert (tmp_path / "plot.png").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_says_so(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    cifar10: Path,
    number: signal.Signals,
) -> None:
    step_of = Trainer._advance

    def interrupted(trainer: Trainer, *arguments: Any) -> Any:
        signal.raise_signal(number)
        return step_of(trainer, *arguments)

    settings = [
        *("--set", "meta_batch=2", "--set", "image_batch=4", "--set", "widths=[16]"),
        *("--set", "max_work=5", "--set", 'ghn={"max_shape": [16, 16, 3, 3]}', "--steps", 3),
        *("--set", "validate_every=0", "--set", "threads=1", "--set", "max_minutes=null"),
    ]
    common = ("--out", tmp_path, "--data", cifar10, "--no-progress")
    with monkeypatch.context() as stopping:
        stopping.setattr(Trainer, "_advance", interrupted)
        assert run(stopping, "train", *common, *settings) == 128 + number
    printed = capfd.readouterr()
    assert "stopping after this step" in printed.err
    assert "interrupted at step 1 after" in printed.out
    assert "before step 3; the same command goes on" in printed.out
    assert run(monkeypatch, "train", *common, *settings) == 0
    printed = capfd.readouterr()
    assert "going on at step 1" in printed.out
    assert "\nstep 3, " in printed.out


def test_published_figures_are_of_cifar10_only(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    ghn_file: Path,
) -> None:
    for split in ("train", "val"):
        for label in range(10):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (20 * label, 0, 0)).save(folder / "0.png")
    arguments = ("--ghn", ghn_file, "--data", tmp_path, "--num-nets", 1)
    assert run(monkeypatch, "eval", *arguments) == 0
    printed = capsys.readouterr().out
    assert "top-1 in % on 10 test images" in printed
    assert "published" not in printed


def test_the_default_ghn_is_that_of_the_library() -> None:
    assert DEFAULT_GHN == DEFAULT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "resnet55"), "did you mean resnet"),
        (("predict", "resnet18", "--ghn", "ghn2-cifar11"), "ghn2-cifar10"),
        (("predict", "torch.nn:ReLU", "--num-classes", "3"), "no parameter num_cl"),
        (("predict", "resnet18", "--out", "x/m.pt"), "the file is safetensors: call it m.safet"),
        (("predict", "resnet18", "--data", "none"), "--data none is no folder of CIFAR-10"),
        (("nets", "search", "--device", "cuda:99"), "device cuda:99 is not there"),
        (("plot", "nodir"), "nodir is not the folder of a training run: no log.jsonl in it"),
        (("draw", "torch.nn:ReLU", "--num-classes", "3"), "no parameter num_cl"),
        (("train", "--out", "x", "--set", "speed=3"), "unknown settings: speed"),
        (("eval", "--data", "no/such/folder"), "no/such/folder"),
        (("eval", "--sgd-epochs", "0"), "--sgd-epochs takes more than 0, not 0"),
    ],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    ghn_file: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    takes_ghn = "--ghn" not in arguments and arguments[0] in ("predict", "eval")
    extra = ("--ghn", str(ghn_file)) if takes_ghn else ()
    assert run(monkeypatch, *arguments, *extra) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert len(printed.splitlines()) == 1
