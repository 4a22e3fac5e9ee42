from __future__ import annotations

import copy
import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

import ghn_fast
from ghn_fast.data import Images
from ghn_fast.evaluation import (
    EvaluationError,
    EvaluationResult,
    NetworkResult,
    calibrate,
    evaluate,
    top1,
    train_network,
)
from ghn_fast.evaluation.run import predicted_network
from ghn_fast.ghn import GHN, ghn2
from ghn_fast.nets import Network, count_parameters, sample_net_args
from ghn_fast.nets.families import sample_member


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2(hid=8, max_shape=(16, 16, 7, 7)).eval()


@pytest.fixture(scope="module")
def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, 10, (24,), generator=generator))


class Brightness(nn.Module):
    """Classifies by whether an image is brighter than the mean of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        value = self.norm(images).mean(dim=(1, 2, 3))
        return torch.stack([-value, value], dim=1)


def test_what_is_no_source_of_images_is_told() -> None:
    model, images = (
        nn.Flatten(),
        Images(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.zeros(4), 2),
    )
    with pytest.raises(TypeError, match="list is no source of labelled images"):
        top1(model, [1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no images"):
        top1(model, images.first(0))
    with pytest.raises(ValueError, match="batch_size must be positive, not 0"):
        top1(model, images, batch_size=0)
    with pytest.raises(TypeError, match="list is no source of labelled images"):
        evaluate(ghn2(), images=[1, 2])  # type: ignore[arg-type]


def test_top1_counts_correct_images_by_batch_statistics() -> None:
    pixels = torch.tensor([0, 10, 200, 210], dtype=torch.uint8).view(4, 1, 1, 1)
    labels = torch.tensor([0, 1, 1, 1])
    data = Images(pixels.repeat(1, 3, 4, 4), labels)
    assert top1(Brightness(), data, batch_size=4) == 75.0
    assert top1(Brightness(), data, batch_size=2) == 75.0
    assert top1(Brightness(), Images(data.images, torch.tensor([0, 1, 0, 1])), 2) == 100.0


class Broken(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("as it does")


@pytest.mark.parametrize("raises", [False, True])
def test_measuring_a_model_leaves_it_as_it_was(images: Images, raises: bool) -> None:
    model = nn.Sequential(Brightness(), Broken() if raises else nn.Identity())
    model[0].eval()
    norm = model[0].norm
    running = norm.running_mean
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError) if raises else nullcontext():
        top1(model, images, batch_size=8)
    assert model.training
    assert not norm.training
    assert norm.track_running_stats
    assert norm.running_mean is running
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_evaluating_leaves_the_modes_of_a_ghn(images: Images) -> None:
    ghn = ghn2(hid=8, max_shape=(16, 16, 7, 7)).train()
    part = next(ghn.children())
    part.eval()
    evaluate(ghn, "test", images, num_nets=1, num_images=4, batch_size=4)
    assert ghn.training
    assert not part.training


def test_what_is_no_ghn_is_refused(images: Images) -> None:
    with pytest.raises(EvaluationError, match=r"Brightness.*top1"):
        evaluate(Brightness(), "test", images)  # type: ignore[arg-type]


def test_a_short_last_batch_is_taken_into_the_one_before() -> None:
    pixels = torch.tensor([0, 10, 200, 230, 240], dtype=torch.uint8).view(5, 1, 1, 1)
    data = Images(pixels.repeat(1, 3, 1, 1), torch.tensor([0, 1, 0, 1, 1]))
    seen = []

    class Sizes(Brightness):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return super().forward(images)

    assert top1(Sizes(), data, batch_size=2) == 100.0
    calibrate(Sizes(), data, batches=2, batch_size=4)
    assert seen == [2, 3, 5]


def test_images_that_the_networks_cannot_have_are_refused(ghn: GHN) -> None:
    pixels = torch.zeros(4, 3, 36, 36, dtype=torch.uint8)
    with pytest.raises(EvaluationError, match="36 pixels cannot be, multiples of 32 can"):
        evaluate(ghn, "test", Images(pixels, torch.arange(4)), num_nets=1)


def test_networks_are_those_of_the_split(ghn: GHN, images: Images) -> None:
    result = evaluate(ghn, "test", images, num_nets=2, num_images=8, batch_size=4)
    assert [network.index for network in result.networks] == [0, 1]
    wanted = [count_parameters(sample_net_args("test", 0, index)) for index in range(2)]
    assert [network.parameters for network in result.networks] == wanted
    assert result.num_images == 8
    assert all(0 <= value <= 100 for value in result.top1)


def test_predicted_parameters_are_what_is_evaluated(ghn: GHN, images: Images) -> None:
    result = evaluate(ghn, "test", images, num_nets=1, batch_size=8)
    net_args = sample_net_args("test", 0, 0)
    network = Network(num_classes=10, is_imagenet_input=False, **net_args).eval()
    with torch.no_grad():
        ghn(network)
    assert result.top1 == [top1(network, images, 8)]


@pytest.mark.parametrize(("small", "large"), [(3e30, 3e30), (0.5, 0.0)])
def test_what_memory_held_before_makes_no_difference(
    ghn: GHN, monkeypatch: pytest.MonkeyPatch, small: float, large: float
) -> None:
    """Zeros beside others look like layers that start silent, large biases like chosen ones."""
    net_args = sample_net_args("val", 0, 0)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    initialised = Network(num_classes=10, is_imagenet_input=False, **net_args)

    def dirty(like: torch.Tensor, **options: Any) -> torch.Tensor:
        return torch.full_like(like, small if like.numel() < 5000 else large, **options)

    monkeypatch.setattr(torch, "empty_like", dirty)
    with torch.no_grad():
        predicted = predicted_network(ghn, net_args, is_large=False).eval()
        expected = ghn(initialised).eval()(pixels)
        torch.testing.assert_close(predicted(pixels), expected)


def test_the_random_baseline_is_pytorchs_initialisation(images: Images) -> None:
    results = [
        evaluate(None, "test", images, num_nets=1, baseline="random", seed=seed) for seed in (3, 3)
    ]
    torch.manual_seed(3)
    net_args = sample_net_args("test", 3, 0)
    network = Network(num_classes=10, is_imagenet_input=False, **net_args).eval()
    assert results[0].top1 == results[1].top1 == [top1(network, images)]


def test_evaluating_leaves_the_ghn_and_random_numbers_alone(ghn: GHN, images: Images) -> None:
    before = torch.get_rng_state()
    ghn.train()
    evaluate(ghn, "test", images, num_nets=1, num_images=4)
    assert ghn.training
    ghn.eval()
    evaluate(None, "test", images, num_nets=1, num_images=4, baseline="random")
    assert torch.equal(before, torch.get_rng_state())


def test_resnet50(ghn: GHN, images: Images) -> None:
    split = evaluate(ghn, "predefined", images, num_nets=1, num_images=8)
    model = ghn_fast.predict(ghn_fast.adjust_net(models.resnet50(num_classes=10)), ghn)
    assert split.top1 == [top1(model, images.first(8))]
    assert split.networks[0].parameters == 23_520_842


def test_figures() -> None:
    networks = [NetworkResult(i, top1, 1, 0.0) for i, top1 in enumerate((10.0, 20.0, 40.0, 50.0))]
    result = EvaluationResult("test", 0, "ghn", 100, 64, networks)
    assert result.mean == 30.0
    assert result.best == 50.0
    assert result.std == pytest.approx((1000 / 3) ** 0.5)
    assert result.standard_error == pytest.approx((1000 / 3) ** 0.5 / 2)


def test_one_network_tells_no_spread() -> None:
    result = EvaluationResult("test", 0, "ghn", 100, 64, [NetworkResult(0, 10.0, 1, 0.0)])
    assert math.isnan(result.std)
    assert math.isnan(result.standard_error)
    assert result.summary()["std"] is result.summary()["standard_error"] is None
    assert repr(result) == "EvaluationResult(test, ghn, 1 networks: 10.0 %)"


def test_results_are_resumed(images: Images, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    options: dict[str, Any] = {"baseline": "random", "num_images": 4}
    whole = evaluate(None, "test", images, num_nets=3, **options)
    evaluate(None, "test", images, num_nets=1, results_file=path, **options)
    with path.open("a") as file:
        file.write('{"index": 1, "top')  # of a process that was killed
    done: list[int] = []
    resumed = evaluate(
        None,
        "test",
        images,
        num_nets=3,
        results_file=path,
        on_network=lambda network: done.append(network.index),
        **options,
    )
    assert done == [1, 2]
    assert resumed.top1 == whole.top1
    assert EvaluationResult.load(path) == resumed


def test_threads_change_no_random_network(images: Images) -> None:
    options: dict[str, Any] = {"baseline": "random", "num_nets": 3, "num_images": 8}
    alone = evaluate(None, "val", images, threads=1, **options)
    shared = evaluate(None, "val", images, threads=2, **options)
    assert [network.index for network in shared.networks] == [0, 1, 2]
    assert shared.top1 == alone.top1


def test_trained_networks_fit_the_training_images(images: Images) -> None:
    train = Images(images.images[:8], torch.arange(8) % 2)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        model.append(nn.Linear(8 * 15 * 15, 2))
        models.append(train_network(model, train, steps=60, seed=1, batch_size=8))
    assert top1(models[0], train) > 80
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_sgd_baseline_trains(images: Images) -> None:
    options: dict[str, Any] = {"num_nets": 1, "num_images": 8, "train": images.first(4)}
    result = evaluate(None, "test", images, baseline="sgd", sgd_steps=1, **options)
    assert (result.sgd_steps, result.baseline, len(result.networks)) == (1, "sgd", 1)


@pytest.mark.parametrize("stem", ["results", "results[1]"])
def test_parts_of_other_processes_are_taken_over(images: Images, tmp_path: Path, stem: str) -> None:
    path, part = tmp_path / f"{stem}.jsonl", tmp_path / f"{stem}.part1.jsonl"
    unrelated = [tmp_path / name for name in ("results.partial.jsonl", "results1.part1.jsonl")]
    for file in unrelated:
        file.write_text("something else\n")
    other = NetworkResult(1, 50.0, 7, 0.1)
    options: dict[str, Any] = {"baseline": "random", "num_images": 4}
    settings = evaluate(None, "test", images, num_nets=0, **options).settings()
    EvaluationResult(**settings, networks=[other]).save(part)
    options["results_file"] = path
    result = evaluate(None, "test", images, num_nets=2, **options)
    assert result.networks[1] == other
    assert {*tmp_path.iterdir()} == {path, *unrelated}
    assert EvaluationResult.load(path) == result


def test_calibration_takes_the_statistics_of_all_images(images: Images) -> None:
    model = calibrate(Brightness(), images, batches=3, batch_size=8)
    pixels = images.batch(torch.arange(24))
    norm = model.norm
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, pixels.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_var, pixels.var(dim=(0, 2, 3)))
    assert norm.momentum == 0.1
    assert not model.training
    before = top1(model, images, 3, batch_statistics=False)
    assert before == top1(model, images, 8, batch_statistics=False)


def test_results_of_another_evaluation_are_refused(
    ghn: GHN, images: Images, tmp_path: Path
) -> None:
    path = tmp_path / "results.jsonl"
    evaluate(ghn, "test", images, num_nets=1, num_images=4, results_file=path)
    with pytest.raises(EvaluationError, match="results for num_images=4, not 8"):
        evaluate(ghn, "test", images, num_nets=1, num_images=8, results_file=path)
    path.write_text("{}\n")
    with pytest.raises(EvaluationError, match="holds no evaluation results"):
        evaluate(ghn, "test", images, num_nets=1, num_images=4, results_file=path)


def test_results_of_another_ghn_are_refused(ghn: GHN, images: Images, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    options: dict[str, Any] = {"num_nets": 1, "num_images": 4, "results_file": path}
    first = evaluate(ghn, "test", images, **options)
    assert evaluate(copy.deepcopy(ghn), "test", images, **options) == first
    trained_on = copy.deepcopy(ghn)
    with torch.no_grad():
        next(trained_on.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(EvaluationError, match="results for ghn_digest="):
        evaluate(trained_on, "test", images, **options)


@pytest.mark.parametrize("changed", ["labels", "images"])
def test_results_of_other_images_are_refused(images: Images, tmp_path: Path, changed: str) -> None:
    path = tmp_path / "results.jsonl"
    options: dict[str, Any] = {"baseline": "random", "num_nets": 1, "results_file": path}
    evaluate(None, "test", images, **options)
    other = Images(images.images.clone(), images.labels.clone())
    getattr(other, changed)[5] = 9 - getattr(other, changed)[5]
    with pytest.raises(EvaluationError, match="results for images_digest="):
        evaluate(None, "test", other, **options)


def test_results_of_other_training_images_are_refused(images: Images, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    options: dict[str, Any] = {"baseline": "random", "num_nets": 1, "results_file": path}
    options |= {"norm": "calibrated", "num_images": 4}
    evaluate(None, "test", images, train=images.first(8), **options)
    with pytest.raises(EvaluationError, match="results for images_digest="):
        evaluate(None, "test", images, train=images.first(9), **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", "x"), ("top1", "x"), ("index", None), ("name", 3), ("left", True)],
)
def test_results_of_other_types_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "results.jsonl"
    result = EvaluationResult("test", 0, "ghn", 8, 4, [NetworkResult(0, 50.0, 1000, 0.1)])
    result.save(path)
    assert EvaluationResult.load(path) == result
    settings, network = map(json.loads, path.read_text().splitlines())
    (settings if name == "seed" else network)[name] = value
    path.write_text(f"{json.dumps(settings)}\n{json.dumps(network)}\n")
    with pytest.raises(EvaluationError, match=rf"holds no evaluation results \({name} is"):
        EvaluationResult.load(path)


def test_results_without_digests_are_refused(images: Images, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    options: dict[str, Any] = {"baseline": "random", "num_nets": 1, "results_file": path}
    settings = evaluate(None, "test", images, **options).settings()
    del settings["ghn_digest"], settings["images_digest"]
    path.write_text(json.dumps(settings) + "\n")
    with pytest.raises(EvaluationError, match="does not say of which GHN and images"):
        evaluate(None, "test", images, **options)


def test_a_ghn_for_other_classes_is_refused(ghn: GHN, images: Images) -> None:
    others = Images(images.images, images.labels, num_classes=11)
    with pytest.raises(EvaluationError, match="networks of 10 classes, and the images have 11"):
        evaluate(ghn, "test", others, num_nets=1)


def test_impossible_evaluations_are_refused(images: Images) -> None:
    with pytest.raises(EvaluationError, match="needs a GHN"):
        evaluate(None, "test", images)
    with pytest.raises(EvaluationError, match="must be one of ghn, random, sgd, not 'adam'"):
        evaluate(None, "test", images, baseline="adam")
    with pytest.raises(EvaluationError, match="needs sgd_steps, not 0"):
        evaluate(None, "test", images, baseline="sgd")
    with pytest.raises(EvaluationError, match="unknown split 'tset'"):
        evaluate(None, "tset", images, baseline="random")


def test_the_zoo_is_evaluated_by_name(
    ghn: GHN, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("mnasnet0_5", "vit_b_16", "shufflenet_v2_x0_5")
    monkeypatch.setattr("ghn_fast.evaluation.run.zoo_names", lambda: names)
    few = images.first(8)
    result = evaluate(ghn, "zoo", few, num_nets=2)
    assert [network.name for network in result.networks] == ["mnasnet0_5", "vit_b_16"]
    # The transformer's class token has no node.
    assert [network.left for network in result.networks] == [0, 768]
    assert len(evaluate(None, "zoo", few, num_nets=None, baseline="random").networks) == 3
    large = Images(few.images.repeat(1, 1, 7, 7), few.labels)
    with pytest.raises(EvaluationError, match="split 'zoo' are for 32 x 32 images"):
        evaluate(ghn, "zoo", large)


def test_networks_of_one_family_are_evaluated(ghn: GHN, images: Images) -> None:
    result = evaluate(ghn, "families/test/small", images, num_nets=2)
    assert [network.name for network in result.networks] == ["small", "small"]
    member = sample_member("families/test", 0, 1, family="small")
    assert result.networks[1].parameters == member.parameters
    with pytest.raises(EvaluationError, match="unknown family 'lenet'; there are plain, residual"):
        evaluate(ghn, "families/test/lenet", images, num_nets=1)


def test_networks_of_families_are_evaluated(ghn: GHN, images: Images) -> None:
    result = evaluate(ghn, "families/val", images, num_nets=3)
    for index, network in enumerate(result.networks):
        member = sample_member("families/val", 0, index)
        assert (network.name, network.parameters) == (member.family, member.parameters)
    again = evaluate(
        None, "families/val", images, num_nets=1, baseline="sgd", sgd_steps=1, train=images
    )
    assert again.networks[0].name == result.networks[0].name
