"""Training one network: it learns, goes on where it stopped, and keeps its best."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ghn_fast.finetune
from ghn_fast.calibration import calibrate_
from ghn_fast.data import Images
from ghn_fast.finetune import DivergedError, FinetuneConfig, History, StateError, finetune_
from ghn_fast.graph import TraceError
from tests.graphs import SmallClassifier


def _images(count: int, seed: int) -> Images:
    """Classes that differ in colour."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 156, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(count), labels] += 60
    return Images(pixels, labels, num_classes=3)


TRAIN, VALIDATION, TEST = _images(60, 0), _images(30, 1), _images(30, 2)
CONFIG = FinetuneConfig(epochs=3, lr=0.1, batch_size=20)
NAMED = replace(CONFIG, name="signs, 32")


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(SmallClassifier(num_classes=8), nn.Dropout(0.2), nn.Linear(8, 3))
    return calibrate_(model, TRAIN.batch(torch.arange(60)))


def test_it_learns() -> None:
    steps: list[tuple[int, int]] = []
    model = _model()
    history = finetune_(
        *(model, TRAIN, VALIDATION, TEST, FinetuneConfig(8, 0.1, 20)),
        on_step=lambda *done: steps.append(done),
    )
    assert history.loss[-1] < history.loss[0]
    assert history.test[history.best] > history.test[0]
    assert steps[-1] == (24, 24)
    assert not model.training


class Versioned(SmallClassifier):
    """Loads only what says its version, as torchvision's MNASNets do."""

    _version = 2

    def __init__(self) -> None:
        super().__init__(num_classes=3)

    def _load_from_state_dict(self, state: Any, prefix: str, own: Any, *others: Any) -> None:
        assert own.get("version") == 2
        super()._load_from_state_dict(state, prefix, own, *others)


def test_a_model_that_looks_for_versions_is_trained_and_goes_on(tmp_path: Path) -> None:
    state = tmp_path / "state"
    finetune_(Versioned(), TRAIN, VALIDATION, TEST, CONFIG, state_file=state)
    resumed: list[int] = []
    model = Versioned()
    finetune_(model, TRAIN, VALIDATION, TEST, CONFIG, state_file=state, on_resume=resumed.append)
    assert resumed == [3]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model, parts: model.requires_grad_(False), "there is nothing to train"),
        (
            lambda model, parts: parts.update(
                train=Images(TRAIN.images, TRAIN.labels + 2, num_classes=5)
            ),
            r"labels go up to 4, and the model has 3 outputs: build it with num_classes=5",
        ),
        (lambda model, parts: parts.update(validation=VALIDATION.first(0)), "there are no images"),
        (
            lambda model, parts: parts.update(train=replace(TRAIN, labels=TRAIN.labels - 1)),
            "labels count from 0, and there is -1 among them",
        ),
        (
            lambda model, parts: model.append(nn.Flatten(0)),
            r"the model makes \(6,\) of 2 images, where a classifier of C classes makes \(2, C\)",
        ),
        (
            lambda model, parts: model.append(nn.Unflatten(1, (3, 1, 1))),
            r"the model makes \(2, 3, 1, 1\) of 2 images",
        ),
    ],
)
def test_what_cannot_be_trained_leaves_the_model(
    spoil: Callable[[nn.Module, dict[str, Any]], object], message: str
) -> None:
    model = _model()
    parts: dict[str, Any] = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spoil(model, parts)
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        finetune_(model, **parts)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"batch_size": 0}, {"lr": math.nan}])
def test_settings_of_no_training_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="epochs must not be negative, batch_size and lr be pos"):
        FinetuneConfig(**wrong)


def test_a_state_file_that_is_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="is a folder, and state_file names a file"):
        finetune_(_model(), TRAIN, VALIDATION, TEST, CONFIG, state_file=tmp_path)


def test_labels_of_any_whole_numbers() -> None:
    short = replace(TRAIN, labels=TRAIN.labels.int())
    histories = [finetune_(_model(), part, VALIDATION, TEST, CONFIG) for part in (TRAIN, short)]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_layers_are_in_bfloat16_where_that_is_faster(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    seen: list[torch.dtype] = []

    def record(module: nn.Module, _: object, output: Tensor) -> None:
        if module.training:
            seen.append(output.dtype)

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    model[0].register_forward_hook(record)
    finetune_(model, TRAIN, VALIDATION, TEST, FinetuneConfig(1, 0.1, 20))
    assert set(seen) == {torch.bfloat16 if has_bfloat16 else torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_images_are_cropped_without_black_borders() -> None:
    """An output layer that was fitted to whole images would make nothing of them."""
    grey = Images(torch.full((20, 3, 8, 8), 200, dtype=torch.uint8), TRAIN.labels[:20], 3)
    model = _model()
    spreads: list[float] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            spreads.append(float(inputs[0].std((2, 3)).max()))

    model.register_forward_pre_hook(record)
    finetune_(model, grey, VALIDATION, TEST, FinetuneConfig(1, 0.1, 20))
    assert spreads == [pytest.approx(0, abs=1e-5)]


def test_an_output_layer_of_large_weights_does_not_undo_what_is_before_it() -> None:
    """Trained with a usual rate the classes stay; the best epoch may be the start itself."""

    def norms(scale: float) -> tuple[list[float], nn.Module]:
        model = _model()
        with torch.no_grad():
            model[2].weight.mul_(scale)
            model[2].bias.mul_(scale)
        sure: list[Tensor] = []
        model[2].register_forward_hook(
            lambda module, _, logits: (
                sure.append(logits.detach().norm()) if module.training else None
            )
        )
        finetune_(model, TRAIN, VALIDATION, TEST, FinetuneConfig(1, 1e-8, 20))
        return [float(value) for value in sure], model

    usual, model = norms(1.0)
    large, sharp = norms(1000.0)
    assert len(usual) == len(large) == 3
    assert max(large) < 2 * max(usual)
    assert torch.allclose(sharp[2].weight, 1000 * model[2].weight)  # the start is as good as any


@pytest.mark.parametrize("place", range(3))
def test_a_loader_is_refused_with_what_to_pass(place: int) -> None:
    parts: list[Any] = [TRAIN, VALIDATION, TEST]
    parts[place] = [(TRAIN.images, TRAIN.labels)]
    with pytest.raises(TypeError, match=r"list is no source .* pass ghn_fast\.data\.Images"):
        finetune_(_model(), *parts)


class WithoutOutputLayer(nn.Module):
    """A classifier whose classes are colours."""

    def __init__(self) -> None:
        super().__init__()
        self.common = nn.Parameter(torch.zeros(3))

    def forward(self, images: Tensor) -> Tensor:
        return 300 * images.mean((2, 3)) + self.common


@pytest.mark.parametrize("error", [None, TraceError("lost"), ValueError("shared")])
def test_a_model_whose_output_layer_is_not_found_is_trained_as_it_is(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = WithoutOutputLayer(), []

    def fail(*_: object) -> None:
        assert error is not None
        raise error

    if error is not None:
        monkeypatch.setattr("ghn_fast.head.soften.output_layers", fail)

    def keep(epoch: int, history: History) -> None:
        seen.append(model.common.detach().clone())

    finetune_(model, TRAIN, VALIDATION, TEST, CONFIG, on_epoch=keep)
    assert len({tuple(value.tolist()) for value in seen}) == 4


def test_the_rate_rises_over_the_first_epoch_and_falls_to_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def record(self: torch.optim.AdamW, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    finetune_(_model(), TRAIN, VALIDATION, TEST, FinetuneConfig(4, 0.1, 20))
    assert len(rates) == 12
    assert rates[0] == pytest.approx(0.1 / 3)
    assert rates[:3] == sorted(rates[:3])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_no_epochs_measure_the_start() -> None:
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    history = finetune_(model, TRAIN, VALIDATION, TEST, FinetuneConfig(0))
    assert (len(history.test), history.best) == (1, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_optimiser_gradients_and_the_one_softening(monkeypatch: pytest.MonkeyPatch) -> None:
    clipped, softened, given = [], [], {}
    clip, make = nn.utils.clip_grad_norm_, torch.optim.AdamW
    monkeypatch.setattr(
        nn.utils, "clip_grad_norm_", lambda p, norm: clipped.append(norm) or clip(p, norm)
    )
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda *a, **named: given.update(named) or make(*a, **named)
    )
    monkeypatch.setattr(
        ghn_fast.finetune, "soften_", lambda model, some: softened.append(len(some))
    )
    model = _model()
    finetune_(model, TRAIN, VALIDATION, TEST, CONFIG)
    assert given["weight_decay"] == 0.05
    assert clipped == [5.0] * 9
    assert softened == [2]
    assert all(parameter.grad is None for parameter in model.parameters())


class WithMore(nn.Module):
    """Parameters that are complex, or whole numbers that are not trained, and a count of its own.

    Args:
        is_complex: a filter of complex numbers is trained.
    """

    def __init__(self, is_complex: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.is_complex = SmallClassifier(num_classes=3), is_complex
        if is_complex:
            self.extra = nn.Parameter(torch.ones(3, 8, 5, dtype=torch.complex64))
        else:
            self.extra = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.is_complex:
            images = torch.fft.irfft2(torch.fft.rfft2(images.float()) * self.extra)
        return self.net(images)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 2}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 2}


@pytest.mark.parametrize("is_complex", [True, False])
def test_parameters_that_are_no_real_numbers(tmp_path: Path, is_complex: bool) -> None:
    state = tmp_path / "state"
    model, again = WithMore(is_complex), WithMore(is_complex)
    before = again.extra.detach().clone()
    history = finetune_(model, TRAIN, VALIDATION, TEST, CONFIG, state_file=state)
    assert finetune_(again, TRAIN, VALIDATION, TEST, CONFIG, state_file=state) == history
    assert torch.equal(again.extra, model.extra)
    assert torch.equal(again.extra, before) is (not is_complex or history.best == 0)


def test_only_the_epochs_that_are_asked_for_are_measured() -> None:
    every = finetune_(_model(), TRAIN, VALIDATION, TEST, FinetuneConfig(4, 0.1, 20))
    config = FinetuneConfig(4, 0.1, 20, measured=(1,))
    history = finetune_(_model(), TRAIN, VALIDATION, TEST, config)
    assert [epoch for epoch, value in enumerate(history.test) if value == value] == [0, 1, 4]
    assert [history.test[epoch] for epoch in (0, 1, 4)] == [every.test[n] for n in (0, 1, 4)]
    assert history.best in (0, 1, 4)
    assert history.loss == every.loss


def test_the_best_epoch_is_what_is_left() -> None:
    states: list[dict[str, torch.Tensor]] = []
    model = _model()

    def keep(epoch: int, history: History) -> None:
        states.append({name: value.clone() for name, value in model.state_dict().items()})

    config = FinetuneConfig(4, 3.0, 20)  # too large a rate: it does not only get better
    history = finetune_(model, TRAIN, VALIDATION, TEST, config, on_epoch=keep)
    assert history.validation[history.best] == max(history.validation)
    best = states[history.best]
    assert all(torch.equal(value, best[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stopped", [0, 1, 2])
def test_an_interrupted_training_ends_as_one_without(tmp_path: Path, stopped: int) -> None:
    class Stop(Exception):
        pass

    def stop(epoch: int, history: History) -> None:
        if epoch == stopped:
            raise Stop

    torch.manual_seed(5)
    whole = _model()
    expected = finetune_(whole, TRAIN, VALIDATION, TEST, CONFIG)
    path = tmp_path / "run.unfinished"
    torch.manual_seed(5)
    with pytest.raises(Stop):
        finetune_(_model(), TRAIN, VALIDATION, TEST, CONFIG, state_file=path, on_epoch=stop)
    model = SmallClassifier(num_classes=8)
    resumed = nn.Sequential(model, nn.Dropout(0.2), nn.Linear(8, 3))
    epochs: list[int] = []
    history = finetune_(
        *(resumed, TRAIN, VALIDATION, TEST, CONFIG),
        state_file=path,
        on_resume=epochs.append,
    )
    assert (history, epochs) == (expected, [stopped])
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.state_dict().items())


def test_a_full_disk_keeps_the_last_state_and_the_training_goes_on(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "state"
    options: dict[str, Any] = {"state_file": path}
    expected = finetune_(_model(), TRAIN, VALIDATION, TEST, CONFIG)

    def stop(epoch: int, history: History) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_(_model(), TRAIN, VALIDATION, TEST, CONFIG, **options, on_epoch=stop)
    kept, message = path.read_bytes(), r"epoch \d: no state was written: \[Errno 27\]"
    with full_disk(1000), pytest.warns(UserWarning, match=message) as caught:
        assert finetune_(_model(), TRAIN, VALIDATION, TEST, CONFIG, **options) == expected
    assert len(caught) == 3
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [kept]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("config", r"of a training with other settings \(lr: 0\.1 -> 0\.2, name: 32 -> 64\): use"),
        ("model", "damaged, or of another model"),
        ("damaged", "damaged, or of another model"),
    ],
)
def test_a_state_of_something_else_is_refused(tmp_path: Path, what: str, message: str) -> None:
    path = tmp_path / "run.unfinished"
    finetune_(_model(), TRAIN, VALIDATION, TEST, NAMED, state_file=path)
    if what == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    config = replace(NAMED, lr=0.2, name="signs, 64") if what == "config" else NAMED
    model = SmallClassifier(num_classes=3) if what == "model" else _model()
    resumed: list[int] = []
    with pytest.raises(StateError, match=rf"run\.unfinished is {message}"):
        finetune_(
            *(model, TRAIN, VALIDATION, TEST, config),
            state_file=path,
            on_resume=resumed.append,
        )
    assert not resumed


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("optimizer", "state", {0: {"exp_avg": torch.zeros(3)}}),
        ("optimizer", "state", {10**6: {"exp_avg": torch.zeros(3)}}),
        ("best", "2.bias", torch.zeros(4)),
        ("model", "2.bias", torch.zeros(3, dtype=torch.float64)),
        ("history", "validation", []),
        ("history", "loss", ["x", 1.0, 1.0]),
    ],
)
def test_a_state_that_no_training_keeps_is_refused(
    tmp_path: Path, part: str, key: str, value: Any
) -> None:
    path = tmp_path / "run.unfinished"
    finetune_(_model(), TRAIN, VALIDATION, TEST, CONFIG, state_file=path)
    content = torch.load(path, weights_only=True)
    content[part][key] = value
    torch.save(content, path)
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"run\.unfinished is damaged, or of .*: remove it"):
        finetune_(model, TRAIN, VALIDATION, TEST, CONFIG, state_file=path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loss_that_is_not_finite_ends_with_the_best_so_far() -> None:
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="smaller learning rate"):
        finetune_(model, TRAIN, VALIDATION, TEST, FinetuneConfig(3, 1e30, 20))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _without_norms() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    )
    nn.init.constant_(model[4].bias[:1], -9.0)  # what is not finite is counted as class 0
    return model


@pytest.mark.parametrize("make", [_model, _without_norms])
@pytest.mark.parametrize("measured", [(), (2,)])
@pytest.mark.parametrize("lr", [1e38, 1e25])  # parameters, or only what is made of them
def test_activations_that_are_not_finite_end_with_the_best_so_far(
    make: Callable[[], nn.Module], measured: tuple[int, ...], lr: float
) -> None:
    """After a last step that is too long, which no loss tells of."""
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = FinetuneConfig(2, lr, len(TRAIN), measured=measured)
    with pytest.raises(DivergedError, match="smaller learning rate") as caught:
        finetune_(model, TRAIN, VALIDATION, TEST, config)
    assert len(caught.value.history.test) <= 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
