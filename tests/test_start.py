"""Which start a model gets, what it is left with, and what is said of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ghn_fast
import ghn_fast.start
from ghn_fast.data import Images, normalised_by
from ghn_fast.evaluation import batches_in_order, calibrate
from ghn_fast.ghn import GHN, ghn2
from ghn_fast.prediction import PredictionReport
from ghn_fast.refine import refine_last_third_
from ghn_fast.start import StartReport, UnusableError, start_
from tests.graphs import SmallClassifier


def untracked() -> nn.Module:
    """Its norm has no statistics before it is given some."""
    model = SmallClassifier(num_classes=3)
    model.bn = nn.BatchNorm2d(8, track_running_stats=False)
    return model


MODELS = [lambda: SmallClassifier(num_classes=3), untracked]


@pytest.fixture(scope="module")
def pictures() -> Images:
    """Classes that differ in colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    pixels = torch.randint(0, 176, (120, 3, 8, 8), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(120), labels] += 60
    return Images(pixels, labels, num_classes=3)


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2(num_classes=3, hid=8, max_shape=(8, 8, 3, 3)).eval()


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return make()


def silence(weight: Tensor) -> None:
    """All features but one are the same for all pictures."""
    nn.init.zeros_(weight[1:])


def silence_first(model: nn.Module, _: object) -> None:
    silence(next(model.parameters()).data)


def renew(model: nn.Module, _: object) -> None:
    """Features that tell the colours apart."""
    generator = torch.Generator().manual_seed(1)
    weight = next(model.parameters()).data
    weight.copy_(torch.randn(weight.shape, generator=generator))


def spoil_prediction(monkeypatch: pytest.MonkeyPatch, how: Callable[[Tensor], object]) -> None:
    def spoilt(model: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        result = ghn_fast.predict(model, *arguments, **keywords)
        how(next(model.parameters()))
        return result

    monkeypatch.setattr(ghn_fast.start, "predict", spoilt)


def assert_same(model: nn.Module, other: nn.Module) -> None:
    values, others = model.state_dict(), other.state_dict()
    assert values.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in values.items())


def test_an_error_leaves_the_modes_and_norms_without_statistics(
    pictures: Images, ghn: GHN, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), SmallClassifier()).train()
    before = copy.deepcopy(model)
    monkeypatch.setattr(ghn_fast.start, "fit_head_", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_(model, pictures, ghn)
    assert_same(model, before)
    assert all(module.training for module in model.modules())
    assert not model[0].track_running_stats


def _interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("better", ["predicted", "refined", "random"])
def test_the_best_start_is_kept(
    make: Callable[[], nn.Module],
    better: str,
    pictures: Images,
    ghn: GHN,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the model is as if that one had been asked for."""
    model = made(make)
    if better != "random":
        silence(next(model.parameters()).data)
    if better != "predicted":
        spoil_prediction(monkeypatch, silence)
    refine = renew if better == "refined" else silence_first
    monkeypatch.setattr(ghn_fast.start, "refine_last_third_", refine)
    asked = copy.deepcopy(model)
    report = start_(model, pictures, ghn)
    assert report.start == better
    assert list(report.heads) == ["predicted", "refined", "random"]
    assert report.head == report.heads[better] == max(report.heads.values(), key=_accuracy)
    start = "random" if better == "random" else "predicted"
    assert start_(asked, pictures, ghn, start=start, refine=better == "refined") == StartReport(
        better, report.head, {better: report.head}
    )
    assert_same(model, asked)
    assert not model.training


def _accuracy(head: ghn_fast.HeadReport) -> float:
    return head.accuracy


def test_the_predicted_one_if_both_are_alike(pictures: Images, ghn: GHN) -> None:
    model = made(MODELS[0])
    for parameter in model.parameters():
        parameter._no_reinit = True  # type: ignore[attr-defined]
    report = start_(model, pictures, ghn)
    assert report.heads["predicted"].accuracy == report.heads["random"].accuracy
    assert report.start == "predicted"


def test_many_pictures_are_compared_by_the_first(
    pictures: Images, ghn: GHN, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, of_class, tried in ((60, 1, 60), (1, 25, 75), (200, 1, 120)):
        monkeypatch.setattr(ghn_fast.start, "TRIAL_PICTURES", most)
        monkeypatch.setattr(ghn_fast.start, "TRIAL_OF_CLASS", of_class)
        model = made(MODELS[0])
        report = start_(model, pictures, ghn)
        assert [head.pictures for head in report.heads.values()] == [tried] * 3
        assert report.head.pictures == 120
        asked = made(MODELS[0])
        is_random, is_refined = report.start == "random", report.start == "refined"
        start_(
            asked, pictures, ghn, start="random" if is_random else "predicted", refine=is_refined
        )
        assert_same(model, asked)


def test_of_what_is_predicted_the_better_is_kept(pictures: Images, ghn: GHN) -> None:
    model = made(MODELS[0])
    report = start_(model, pictures, ghn, start="predicted")
    assert list(report.heads) == ["predicted", "refined"]
    assert report.heads[report.start].accuracy == max(map(_accuracy, report.heads.values()))
    for refine, name in ((True, "refined"), (False, "predicted")):
        report = start_(made(MODELS[0]), pictures, ghn, refine=refine)
        assert list(report.heads) == [name, "random"]


def test_what_cannot_be_refined_is_used_as_it_is_predicted(pictures: Images, ghn: GHN) -> None:
    model = made(MODELS[0])
    nn.utils.parametrizations.weight_norm(model.conv)
    report = start_(model, pictures, ghn)
    assert list(report.heads) == ["predicted", "random"]
    assert "refine the model before it is parametrised" in report.error
    with pytest.raises(UnusableError, match="refine the model before it is parametrised"):
        start_(model, pictures, ghn, start="predicted", refine=True)


@pytest.mark.parametrize("make", MODELS)
def test_a_prediction_that_cannot_be_used_is_left(
    make: Callable[[], nn.Module], pictures: Images, ghn: GHN, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_prediction(monkeypatch, lambda weight: nn.init.constant_(weight, torch.inf))
    model, random = made(make), made(make)
    said: list[tuple[str, object]] = []
    report = start_(model, pictures, ghn, on_report=lambda *one: said.append(one))
    assert (report.start, list(report.heads)) == ("random", ["random"])
    assert "not finite" in report.error or "no finite" in report.error
    assert [(start, type(one)) for start, one in said] == [
        ("predicted", PredictionReport),
        ("predicted", ValueError),
        ("refined", ValueError),
        ("random", ghn_fast.HeadReport),
    ]
    start_(random, pictures, start="random")
    assert_same(model, random)
    with pytest.raises(ValueError, match="finite"):
        start_(model, pictures, ghn, start="predicted")
    assert_same(model, random)


def test_what_is_raised_leaves_the_model_its_parameters(pictures: Images, ghn: GHN) -> None:
    model, before = made(MODELS[0]), made(MODELS[0])
    with pytest.raises(ValueError, match="no-such-ghn"):
        start_(model, pictures, "no-such-ghn")
    assert_same(model, before)
    with pytest.raises(
        ValueError, match="start takes best, predicted, refined, random, not 'mine'"
    ):
        start_(model, pictures, ghn, start="mine")
    other = replace(pictures, labels=pictures.labels + 1, num_classes=4)
    with pytest.raises(ValueError, match="subtract 1"):
        start_(model, other, ghn)
    assert_same(model, before)


def test_pictures_that_are_normalised_otherwise_are_told(pictures: Images) -> None:
    model = made(MODELS[0])
    others = normalised_by(pictures, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.warns(UserWarning, match=r"by 0\.491, .*: ghn_fast\.data\.normalised_by") as caught:
        start_(model, others, start="predicted")
    assert [Path(warning.filename).name for warning in caught] == ["test_start.py"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start_(model, others, start="random")
        start_(model, pictures, start="predicted")


def test_the_refined_start_by_its_name(pictures: Images, ghn: GHN) -> None:
    named, other = made(MODELS[0]), made(MODELS[0])
    assert start_(named, pictures, ghn, start="refined").start == "refined"
    start_(other, pictures, ghn, start="predicted", refine=True)
    assert_same(named, other)
    with pytest.raises(ValueError, match="start refined is refined, and refine says not to"):
        start_(named, pictures, ghn, start="refined", refine=False)


def test_a_loader_is_refused_with_what_to_pass(pictures: Images, ghn: GHN) -> None:
    model, before = made(MODELS[0]), made(MODELS[0])
    data_set = TensorDataset(pictures.images, pictures.labels)
    others: tuple[Any, ...] = (data_set, DataLoader(data_set))
    for given in others:
        message = f"{type(given).__name__} is no source .* pass ghn_fast.data.Images"
        with pytest.raises(TypeError, match=message):
            start_(model, given, ghn)
    assert_same(model, before)


def test_it_is_what_its_steps_make_one_by_one(pictures: Images, ghn: GHN) -> None:
    model, by_hand = made(MODELS[0]), made(MODELS[0])
    generator = torch.Generator()
    said: list[tuple[str, object]] = []
    report = start_(
        *(model, pictures, ghn),
        start="predicted",
        refine=True,
        generator=generator.manual_seed(3),
        device="cpu",
        batch_size=7,
        on_report=lambda *one: said.append(one),
    )
    ghn_fast.predict(by_hand, ghn)
    refine_last_third_(by_hand, generator.manual_seed(3))
    by_hand.to(memory_format=torch.channels_last)
    calibrate(by_hand, pictures)
    head = ghn_fast.fit_head_(by_hand, batches_in_order(pictures, 7))
    assert_same(model, by_hand)
    assert next(model.parameters()).is_contiguous(memory_format=torch.channels_last)
    assert said[1:] == [("refined", head)]
    assert report == StartReport("refined", head, {"refined": head})
