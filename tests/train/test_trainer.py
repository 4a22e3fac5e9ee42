from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ghn_fast.checkpoint import load_ghn, save
from ghn_fast.data import DataError, Images, ImageStream
from ghn_fast.ghn import ghn2
from ghn_fast.train import (
    ConfigError,
    Processes,
    StepResult,
    Teacher,
    TrainConfig,
    Trainer,
    plot_run,
    read_log,
)
from ghn_fast.train.config import free_settings
from ghn_fast.train.log import RunLog
from tests.graphs import SmallClassifier

TINY = TrainConfig(
    ghn={"hid": 8, "max_shape": [16, 16, 7, 7]},
    steps=6,
    max_minutes=None,
    meta_batch=2,
    image_batch=8,
    crop_share=0.5,
    num_networks=60,
    widths=(16,),
    max_work=15,
    warmup_steps=2,
    threads=1,
    log_every=1,
    validate_every=0,
    checkpoint_every=1,
    validation_networks=1,
    validation_images=64,
)


def make_images(count: int = 64) -> Images:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, 10, (count,), generator=generator))


def make_teacher(num_classes: int = 10, seed: int = 3) -> Teacher:
    torch.manual_seed(seed)
    return Teacher(SmallClassifier(num_classes=num_classes).eval())


def make_trainer(folder: Path, config: TrainConfig = TINY) -> Trainer:
    teacher = None if config.teacher is None else make_teacher()
    return Trainer(config, folder, make_images(), make_images(64), teacher)


def state_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, averages, the optimiser's state and the losses agree bit for bit."""
    states = [state_of(folder) for folder in (one, other)]
    for state in states:
        del state["minutes"], state["config"], state["longest"]
    assert_equal(*states)
    losses = [
        [(line["step"], line["loss"]) for line in train_lines(folder)] for folder in (one, other)
    ]
    assert losses[0] == losses[1]


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


def train_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(folder / "log.jsonl") if line["kind"] == "train"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    make_trainer(folder).fit()
    return folder


def test_a_run_leaves_what_is_needed(uninterrupted: Path) -> None:
    assert TrainConfig.load(uninterrupted / "config.json") == TINY
    assert [line["step"] for line in train_lines(uninterrupted)] == [1, 2, 3, 4, 5, 6]
    last = train_lines(uninterrupted)[-1]
    assert last["networks"] == 12
    assert last["networks_per_second"] > 0
    assert sum(last["time_shares"].values()) == pytest.approx(1, abs=1e-2)
    exported = load_ghn(uninterrupted / "ghn.safetensors").state_dict()
    assert_equal(dict(exported), dict(state_of(uninterrupted)["average"]))


def test_repeated_it_is_the_same(uninterrupted: Path, tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    assert_same_run(uninterrupted, tmp_path)


def test_on_two_threads_it_is_the_same(uninterrupted: Path, tmp_path: Path) -> None:
    make_trainer(tmp_path, replace(TINY, threads=2)).fit()
    assert_same_run(uninterrupted, tmp_path)


def fit_until(trainer: Trainer, step: int) -> None:
    """Trains, and is stopped in this step."""
    advance = trainer._advance

    def stop_in_time(*arguments: Any) -> Any:
        if trainer.step == step - 1:
            trainer.stop()
        return advance(*arguments)

    trainer._advance = stop_in_time  # type: ignore[method-assign]
    trainer.fit()
    assert trainer.step == step


def test_stopped_and_resumed_it_is_the_same(uninterrupted: Path, tmp_path: Path) -> None:
    fit_until(make_trainer(tmp_path), 3)
    second = make_trainer(tmp_path)
    assert second.step == 3
    second.fit()
    assert_same_run(uninterrupted, tmp_path)


def test_other_images_are_no_resumption(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    images = make_images()
    for other in (make_images(65), replace(images, mean=(0.1, 0.2, 0.3))):
        with pytest.raises(ConfigError, match="it learned from other images"):
            Trainer(TINY, folder, other)


def test_a_mixture_stopped_and_resumed_is_the_same(tmp_path: Path) -> None:
    mixture = {"deepnets": 1.0, "families": 1.0}
    config = replace(TINY, steps=3, num_networks=None, mixture=mixture)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make_trainer(whole, config).fit()
    fit_until(make_trainer(parts, config), 1)
    make_trainer(parts, config).fit()
    assert_same_run(whole, parts)
    logged = [line["families"] for line in train_lines(whole)]
    assert sum(family["networks"] for line in logged for family in line.values()) == 6
    assert len({name for line in logged for name in line}) > 1


def test_images_are_whole_after_the_share_with_crops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = {}
    batch = ImageStream.batch

    def recorded(stream: ImageStream, index: int, crop: bool, count: int) -> Any:
        crops[index] = crop
        return batch(stream, index, crop, count)

    monkeypatch.setattr(ImageStream, "batch", recorded)
    fit_until(make_trainer(tmp_path), 5)
    each = TINY.meta_batch
    assert [crops[index] for index in range(5 * each)] == [True] * 3 * each + [False] * 2 * each


@pytest.mark.parametrize("own_images", [False, True])
def test_networks_have_their_own_images_if_wanted(tmp_path: Path, own_images: bool) -> None:
    config = replace(TINY, meta_batch=3, num_networks=None, own_images=own_images)
    trainer = make_trainer(tmp_path, config)
    steps = [trainer._prepare(step, position=0) for step in (0, 1)]
    images = [[step.batch.images[part] for part in step.parts] for step in steps]
    assert [len(step.batch.labels[part]) for step in steps for part in step.parts] == [8] * 6
    # The 64 images come in the order of the stream, each once in an epoch.
    different = {image.sum().item() for step in images for part in step for image in part}
    assert len(different) == (48 if own_images else 16)


CHILD = """
import sys
sys.path.append(sys.argv[2])
from tests.train.test_trainer import TINY, Path, make_trainer
make_trainer(Path(sys.argv[1])).fit()
"""


def start_child(folder: Path, steps: int) -> subprocess.Popen[bytes]:
    """Another process that trains, once it has made so many steps."""
    root = Path(__file__).parents[2]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", CHILD, str(folder), str(root)]
    child = subprocess.Popen(command, cwd=folder)  # not in the checkout: the installed package
    log = folder / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < steps:
        assert child.poll() is None, "the process ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return child


@pytest.mark.parametrize("moment", ["early", "while a checkpoint is written", "late"])
def test_killed_and_resumed_it_is_the_same(
    uninterrupted: Path, tmp_path: Path, moment: str
) -> None:
    child = start_child(tmp_path, steps={"early": 1, "late": 4}.get(moment, 2))
    while moment.startswith("while") and not list(tmp_path.glob(".checkpoint.pt.*.tmp")):
        assert child.poll() is None
    child.kill()
    assert child.wait() == -signal.SIGKILL
    trainer = make_trainer(tmp_path)
    assert trainer.step < 6
    trainer.fit()
    assert_same_run(uninterrupted, tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_what_killed_processes_left_is_removed(uninterrupted: Path) -> None:
    names = ("checkpoint.pt", "ghn.safetensors", "config.json", "log.jsonl")
    for name in names:
        (uninterrupted / f".{name}.1234.tmp").touch()
    make_trainer(uninterrupted).fit()
    assert not list(uninterrupted.glob(".*"))


def test_sigterm_ends_it_with_a_checkpoint(tmp_path: Path) -> None:
    child = start_child(tmp_path, steps=2)
    child.terminate()
    assert child.wait(timeout=120) == 0
    step = state_of(tmp_path)["step"]
    assert 2 <= step < 6
    assert train_lines(tmp_path)[-1]["step"] == step


def test_the_time_budget_ends_it(tmp_path: Path) -> None:
    config = replace(TINY, steps=None, max_minutes=0.1, checkpoint_every=0)
    trainer = make_trainer(tmp_path, config)
    trainer.fit()
    assert trainer.finished
    assert state_of(tmp_path)["step"] == trainer.step > 0
    rates = [line["lr"] for line in train_lines(tmp_path)]
    assert rates[-1] < config.lr


def test_a_step_that_would_end_too_late_is_not_begun(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, replace(TINY, steps=None, max_minutes=10.0))
    trainer.minutes = 9.0
    trainer.longest.update(step=30.0, save=20.0)
    assert not trainer.finished
    trainer.longest.update(save=40.0)
    assert trainer.finished


def test_a_finished_run_stays_as_it_is(uninterrupted: Path) -> None:
    before = state_of(uninterrupted)
    make_trainer(uninterrupted).fit()
    assert_equal(before, state_of(uninterrupted))


def test_validation_is_logged(tmp_path: Path) -> None:
    make_trainer(tmp_path, replace(TINY, steps=2, validate_every=2)).fit()
    lines = [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "validation"]
    assert [line["step"] for line in lines] == [2]
    assert 0 <= lines[0]["mean"] <= 100


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make_trainer(tmp_path, replace(TINY, steps=2, tensorboard=True)).fit()
    events = EventAccumulator(str(tmp_path)).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([line["loss"] for line in train_lines(tmp_path)])


def test_other_settings_are_refused(uninterrupted: Path) -> None:
    with pytest.raises(ConfigError, match=r"other settings \(lr: 0\.002 -> 0\.1\)"):
        make_trainer(uninterrupted, replace(TINY, lr=0.1))


def test_settings_that_are_marked_free_may_differ(uninterrupted: Path) -> None:
    other: dict[str, Any] = {
        "data": "elsewhere",
        "device": "cpu",
        "max_minutes": 5.0,
        "cached_networks": 3,
        "threads": 2,
        "log_every": 3,
        "validate_every": 3,
        "checkpoint_every": 3,
        "validation_networks": 3,
        "validation_images": 3,
        "tensorboard": True,
    }
    assert free_settings() == {*other, "teacher", "meta_batch", "accumulate"}
    assert make_trainer(uninterrupted, replace(TINY, **other)).step == TINY.steps


def test_parts_that_max_nodes_counts_are_kept(tmp_path: Path) -> None:
    config = replace(TINY, steps=1, meta_batch=2, max_nodes=2000, normalise_networks=True)
    make_trainer(tmp_path, config).fit()
    halved = replace(config, meta_batch=1, accumulate=2)
    with pytest.raises(ConfigError, match="accumulate x processes: 1 -> 2"):
        make_trainer(tmp_path, halved)


def test_images_of_other_classes_are_refused(tmp_path: Path) -> None:
    images = replace(make_images(), num_classes=7)
    assert Trainer(TINY, tmp_path, images).ghn.config.num_classes == 7
    config = replace(TINY, ghn={**TINY.ghn, "num_classes": 10})
    with pytest.raises(ConfigError, match="num_classes 10, but the images have 7 classes"):
        Trainer(config, tmp_path, images)


def test_what_went_wrong_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_step(*arguments: Any, **options: Any) -> StepResult:
        return StepResult(errors={1: "out of memory"}, skipped="the gradient is not finite")

    monkeypatch.setattr("ghn_fast.train.trainer.train_step", train_step)
    make_trainer(tmp_path, replace(TINY, steps=2)).fit()
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["kind"] for line in lines] == 2 * ["left_out", "skipped", "train"]
    assert lines[0]["reason"] == "out of memory"
    assert lines[-1]["skipped_steps"] == lines[-1]["left_out_networks"] == 2


def test_a_network_that_was_left_out_can_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its number in the stream, whatever order a step takes its networks in."""
    spoiled = []

    def train_step(ghn: Any, models: list[Any], *arguments: Any, **options: Any) -> StepResult:
        spoiled.append(models[0])
        return StepResult(errors={0: "the loss is nan"}, skipped="no network has a finite loss")

    monkeypatch.setattr("ghn_fast.train.trainer.train_step", train_step)
    trainer = make_trainer(tmp_path, replace(TINY, steps=3, meta_batch=3, num_networks=None))
    trainer.fit()
    lines = [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "left_out"]
    found = [trainer.networks.candidate(line["network"]) for line in lines]
    assert [network.model for network in found if network] == spoiled


class Second(Processes):
    """The second of two processes, whose first has the networks 7 and 3."""

    def gather(self, value: Any) -> list[Any]:
        return [[7, 3], value]


def test_a_network_that_another_process_left_out_can_be_found(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.processes = Second(1, 2)
    drawn, _ = trainer.networks.draw(9)
    with RunLog(tmp_path, 0, tensorboard=False) as log:
        trainer._report_errors(log, drawn, StepResult(errors={1: "one", 2: "another"}))
    lines = read_log(tmp_path / "log.jsonl")
    named = [(line["network"], line["reason"]) for line in lines]
    assert named == [(3, "one"), (drawn[0].number, "another")]
    assert drawn[0].number >= 9


def test_a_picture_of_validation_with_one_network(tmp_path: Path) -> None:
    make_trainer(tmp_path, replace(TINY, steps=2, validate_every=1, validation_networks=1)).fit()
    lines = [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "validation"]
    assert [line["standard_error"] for line in lines] == [None, None]
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_picture_of_the_run(uninterrupted: Path, tmp_path: Path) -> None:
    picture = uninterrupted / "curves.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert plot_run(uninterrupted, tmp_path / "again.png").stat().st_size > 10_000
    with pytest.raises(FileNotFoundError):
        plot_run(tmp_path)


def test_a_damaged_checkpoint_is_named(uninterrupted: Path, tmp_path: Path) -> None:
    content = (uninterrupted / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[:1000])
    with pytest.raises(ConfigError, match=r"checkpoint\.pt is not a readable checkpoint"):
        make_trainer(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ConfigError, match="not a checkpoint of this trainer"):
        make_trainer(tmp_path)


FULL_DISK = """
import resource, signal, sys
sys.path.append(sys.argv[2])
from tests.train.test_trainer import Path, make_trainer
trainer = make_trainer(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
trainer.fit()
"""


def test_a_full_disk_keeps_the_last_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    """Files cannot grow beyond 20 kB in the process, so that no checkpoint can be written."""
    run = tmp_path / "run"
    fit_until(make_trainer(run), 4)
    kept = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix != ".jsonl"}
    command = [sys.executable, "-c", FULL_DISK, str(run), str(Path(__file__).parents[2])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "step 5: no checkpoint was written: [Errno 27] File too large" in done.stderr
    for name in ("checkpoint.pt", "ghn.safetensors"):
        assert (run / name).read_bytes() == kept[name]
    failures = [line for line in read_log(run / "log.jsonl") if line["kind"] == "failed_checkpoint"]
    assert [line["step"] for line in failures] == [5, 6]
    trainer = make_trainer(run)
    assert trainer.step == 4
    trainer.fit()
    assert_same_run(uninterrupted, run)


def test_a_full_disk_does_not_end_training(tmp_path: Path) -> None:
    """A disk of 2 MB that is full for two steps and has room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk")
    try:
        trainer = make_trainer(disk / "run")
        advance, filler = trainer._advance, disk / "filler"

        def advance_on_a_full_disk(*arguments: Any) -> Any:
            if trainer.step == 2:
                with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
                    file.write(bytes(2**21))
            if trainer.step == 4:
                filler.unlink()
            return advance(*arguments)

        trainer._advance = advance_on_a_full_disk  # type: ignore[method-assign]
        with pytest.warns(UserWarning, match=r"step 3: no checkpoint was written: .*No space left"):
            trainer.fit()
        assert trainer.failed_checkpoints == 2
        assert make_trainer(disk / "run").step == 6
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    one, other = make_trainer(tmp_path), make_trainer(tmp_path)
    advance = one._advance

    def advance_beside_the_other(*arguments: Any) -> Any:
        with pytest.raises(ConfigError, match="another run is writing in"):
            other.fit()
        return advance(*arguments)

    one._advance = advance_beside_the_other  # type: ignore[method-assign]
    one.fit()
    assert [line["step"] for line in train_lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ConfigError, match="or has since this one read its checkpoint"):
        other.fit()
    one.fit()
    make_trainer(tmp_path).fit()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": None}, "not a checkpoint of this trainer"),
        ({"config": [1]}, "truncated or damaged"),
        ({"config": {"lr": "fast"}}, "lr must be float"),
        ({"step": "6"}, "its step is '6'"),
        ({"step": -5}, "its step is -5"),
        ({"network_position": 2**70}, "its network_position is 11805"),
        ({"minutes": float("nan")}, "its minutes is nan"),
        ({"longest": {}}, "its longest has no save, step, validate"),
        ({"longest": {"step": "x", "save": 0.0, "validate": 0.0}}, "its longest step is 'x'"),
        ({"ghn": {}}, "its ghn has no "),
        ({"optimizer": [1]}, "truncated or damaged"),
    ],
)
def test_a_checkpoint_of_other_content_is_named(
    uninterrupted: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    state = {**state_of(uninterrupted), **changes}
    path = tmp_path / "checkpoint.pt"
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    with pytest.raises(ConfigError, match=message) as caught:
        make_trainer(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()


def infinite(values: dict[str, Any]) -> None:
    next(v for v in values.values() if isinstance(v, torch.Tensor)).fill_(float("inf"))


def shorter(values: dict[str, Any]) -> None:
    name = max(values, key=lambda name: torch.as_tensor(values[name]).numel())
    values[name] = torch.zeros(3)


def unknown(values: dict[str, Any]) -> None:
    values["more"] = torch.zeros(3)


def moved(values: dict[str, Any]) -> None:
    """Every element in the last place of its storage, behind which a kernel would write."""
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            end = torch.full((value.numel(),), 0.5)[-1:]
            values[name] = end.as_strided(value.shape, (0,) * value.dim())


SOAP_RUN = replace(TINY, steps=2, optimizer="soap")


@pytest.fixture(scope="module")
def soap_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soap")
    make_trainer(folder, SOAP_RUN).fit()
    return folder


@pytest.mark.parametrize("change", [infinite, shorter, unknown])
@pytest.mark.parametrize("part", ["ghn", "average", "adamw", "soap"])
def test_what_no_such_run_would_have_kept_is_refused(
    uninterrupted: Path,
    soap_run: Path,
    tmp_path: Path,
    part: str,
    change: Callable[[dict[str, Any]], None],
) -> None:
    folder, config = (soap_run, SOAP_RUN) if part == "soap" else (uninterrupted, TINY)
    state = state_of(folder)
    states = state["optimizer"]["state"]
    change(state[part] if part in state else states[max(states)])
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ConfigError, match=r"checkpoint\.pt: its (ghn|average|optimizer)") as caught:
        make_trainer(tmp_path, config)
    assert str(caught.value).isprintable()


def test_the_state_of_an_optimiser_is_laid_out_as_its_own(
    uninterrupted: Path, tmp_path: Path
) -> None:
    state = state_of(uninterrupted)
    for values in state["optimizer"]["state"].values():
        moved(values)
    state["optimizer"]["param_groups"] = [{"betas": (5, 5), "lr": 0.5, "params": [0]}]
    torch.save(state, tmp_path / "checkpoint.pt")
    optimizer = make_trainer(tmp_path).optimizer
    assert optimizer.param_groups[0]["betas"] == TINY.betas
    for parameter, values in optimizer.state.items():
        assert values["exp_avg"].stride() == parameter.stride()


def test_a_flipped_bit_of_a_checkpoint_is_found(uninterrupted: Path, tmp_path: Path) -> None:
    content = bytearray((uninterrupted / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ConfigError, match="Bad CRC-32"):
        make_trainer(tmp_path)


def test_fewer_images_than_a_batch_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="7 images to learn from, fewer than the 8 of image_batch"):
        Trainer(TINY, tmp_path, make_images(7))


def test_starts_from_a_trained_ghn(tmp_path: Path) -> None:
    start = ghn2(**TINY.ghn)
    save(start, tmp_path / "start.safetensors")
    config = replace(TINY, init=str(tmp_path / "start.safetensors"))
    trainer = make_trainer(tmp_path / "run", config)
    for name, tensor in trainer.ghn.state_dict().items():
        assert torch.equal(tensor, start.state_dict()[name])
    said, images = trainer.ghn.config, make_images()
    assert (said.mean, said.std) == (images.mean, images.std)
    assert said.image_size == images.images.shape[-1]
    with pytest.raises(ConfigError, match="is a GHN of GHNConfig"):
        make_trainer(tmp_path / "other", replace(config, ghn={}))
    flat = replace(config, ghn={**TINY.ghn, "flat_kernels": True})
    assert make_trainer(tmp_path / "flat", flat).ghn.config.flat_kernels


def test_a_network_in_use_is_not_touched_when_it_is_drawn_again(tmp_path: Path) -> None:
    """The next step is prepared during this one, and networks come from a cache."""
    trainer = make_trainer(tmp_path)
    network = trainer._placed(trainer.networks.at(0, 0))
    module = next(m for m in network.model.modules() if isinstance(m, nn.Conv2d))
    predicted = torch.zeros(module.weight.shape, requires_grad=True)
    module._parameters["weight"] = predicted  # type: ignore[assignment]
    assert trainer._placed(trainer.networks.at(0, 0)).model is network.model
    assert module._parameters["weight"] is predicted


def test_trains_a_ghn3(tmp_path: Path) -> None:
    settings = {"hypernet": "graphormer", "hid": 8, "heads": 2, "layers": 2}
    shape = {"num_classes": 10, "max_shape": [16, 16, 7, 7]}
    trainer = make_trainer(tmp_path, replace(TINY, ghn={**settings, **shape}, steps=2))
    before = {name: p.detach().clone() for name, p in trainer.ghn.named_parameters()}
    trainer.fit()
    changed = [n for n, p in trainer.ghn.named_parameters() if not torch.equal(p, before[n])]
    assert any(name.startswith("gnn.") for name in changed)
    assert load_ghn(tmp_path / "ghn.safetensors").config == trainer.ghn.config
