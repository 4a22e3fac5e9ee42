from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ghn_fast.data import Images
from ghn_fast.evaluation import (
    EvaluationError,
    EvaluationResult,
    NetworkResult,
    evaluate,
    evaluate_resnet50,
    top1,
)
from ghn_fast.ghn import GHN, ghn2
from ghn_fast.nets import Network, count_parameters, sample_net_args


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


def test_top1_counts_correct_images_by_batch_statistics() -> None:
    pixels = torch.tensor([0, 10, 200, 210], dtype=torch.uint8).view(4, 1, 1, 1)
    labels = torch.tensor([0, 1, 1, 1])
    data = Images(pixels.repeat(1, 3, 4, 4), labels)
    assert top1(Brightness(), data, batch_size=4) == 75.0
    assert top1(Brightness(), data, batch_size=2) == 75.0
    assert top1(Brightness(), Images(data.images, torch.tensor([0, 1, 0, 1])), 2) == 100.0


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
    predicted = evaluate_resnet50(ghn, images, num_images=8)
    split = evaluate(ghn, "predefined", images, num_nets=1, num_images=8)
    assert split.top1 == [predicted]
    assert split.networks[0].parameters == 23_520_842
    assert 0 <= evaluate_resnet50(None, images, num_images=4) <= 100


def test_figures() -> None:
    networks = [NetworkResult(i, top1, 1, 0.0) for i, top1 in enumerate((10.0, 20.0, 40.0, 50.0))]
    result = EvaluationResult("test", 0, "ghn", 100, 64, networks)
    assert result.mean == 30.0
    assert result.best == 50.0
    assert result.std == pytest.approx((1000 / 3) ** 0.5)
    assert result.standard_error == pytest.approx((1000 / 3) ** 0.5 / 2)


def test_results_are_resumed(ghn: GHN, images: Images, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    options = {"num_images": 4, "results_file": path}
    whole = evaluate(ghn, "test", images, num_nets=2, num_images=4)
    evaluate(ghn, "test", images, num_nets=1, **options)  # type: ignore[arg-type]
    done: list[int] = []
    resumed = evaluate(
        ghn,
        "test",
        images,
        num_nets=2,
        on_network=lambda network: done.append(network.index),
        **options,  # type: ignore[arg-type]
    )
    assert done == [1]
    assert resumed.top1 == whole.top1
    assert EvaluationResult.from_json(path) == resumed
    assert json.loads(path.read_text())["summary"]["mean"] == pytest.approx(whole.mean)


def test_results_of_another_evaluation_are_refused(
    ghn: GHN, images: Images, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    evaluate(ghn, "test", images, num_nets=1, num_images=4, results_file=path)
    with pytest.raises(EvaluationError, match="results for num_images=4, not 8"):
        evaluate(ghn, "test", images, num_nets=1, num_images=8, results_file=path)
    path.write_text("{}")
    with pytest.raises(EvaluationError, match="holds no evaluation results"):
        evaluate(ghn, "test", images, num_nets=1, num_images=4, results_file=path)


def test_impossible_evaluations_are_refused(images: Images) -> None:
    with pytest.raises(EvaluationError, match="needs a GHN"):
        evaluate(None, "test", images)
    with pytest.raises(EvaluationError, match="must be one of ghn, random, not 'sgd'"):
        evaluate(None, "test", images, baseline="sgd")
    with pytest.raises(ValueError, match="unknown split 'tset'"):
        evaluate(None, "tset", images, baseline="random")
