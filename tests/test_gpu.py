"""Prediction, training and evaluation as a whole on a GPU, beside the same on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import ghn_fast
from ghn_fast._system.device import images_to_device
from ghn_fast._system.processes import choose_device
from ghn_fast.data import Images, ImageStream, normalise
from ghn_fast.evaluation import evaluate
from ghn_fast.ghn import GHN, ghn2, ghn3
from ghn_fast.graph import Graph, GraphBatch
from ghn_fast.train import NetworkStream, TrainConfig, read_log, train_step
from tests.train.test_processes import torchrun
from tests.train.test_trainer import TINY, make_images, make_trainer, state_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
NETWORKS = TrainConfig(meta_batch=4, widths=(16, 32), max_work=40)


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tf32, whose products have ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 40, 3, padding=1),
        nn.BatchNorm2d(40),
        nn.ReLU(),
        nn.Conv2d(40, 72, 3, padding=1, groups=2),
        nn.GroupNorm(8, 72),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(72, 10),
    )


def make_ghn(kind: str) -> GHN:
    torch.manual_seed(0)
    if kind == "ghn3":
        return ghn3("t", num_classes=10)
    return ghn2(hid=32, max_shape=(32, 32, 7, 7))


def state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["ghn2", "ghn3"])
def test_predicts_as_on_the_cpu(kind: str) -> None:
    ghn = make_ghn(kind).eval()
    expected, model = classifier(), classifier().to(CUDA)
    ghn_fast.predict(expected, ghn)
    _, report = ghn_fast.predict(model, ghn.to(CUDA), return_report=True)
    assert not report.unpredicted
    assert all(parameter.is_cuda for parameter in model.parameters())
    for name, tensor in state_dict(expected).items():
        torch.testing.assert_close(state_dict(model)[name], tensor, rtol=1e-3, atol=1e-4)


def test_the_ghn_of_a_name_is_used_where_the_model_is() -> None:
    expected, model = classifier(), classifier().to(CUDA)
    ghn_fast.predict(expected)
    ghn_fast.predict(model)
    for name, tensor in state_dict(expected).items():
        torch.testing.assert_close(state_dict(model)[name], tensor, rtol=1e-3, atol=1e-4)


def test_halves_are_predicted_in_place() -> None:
    model = classifier().to(CUDA, torch.bfloat16)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    ghn_fast.predict(model, make_ghn("ghn2").eval().to(CUDA))
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    expected = classifier()
    ghn_fast.predict(expected, make_ghn("ghn2").eval())
    for name, tensor in state_dict(expected).items():
        value = state_dict(model)[name].to(tensor)
        torch.testing.assert_close(value, tensor, rtol=2e-2, atol=2e-3)


def step_on(device: torch.device, kind: str) -> tuple[float, list[torch.Tensor]]:
    """The loss and the GHN's gradients of a step."""
    ghn = make_ghn(kind).train().to(device)
    drawn, _ = NetworkStream(NETWORKS, 10).draw(0)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(16, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(0, 10, (16,), generator=generator).to(device)
    result = train_step(
        ghn,
        [network.model for network in drawn],
        GraphBatch([network.graph for network in drawn]),
        images,
        labels,
        torch.optim.SGD(ghn.parameters(), lr=0.0),
        grad_clip=0,
        normalise_networks=True,
    )
    assert not result.errors
    return result.loss, [p.grad.cpu() for p in ghn.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["ghn2", "ghn3"])
def test_a_step_is_that_of_the_cpu(kind: str) -> None:
    (loss, gradients), (expected_loss, expected) = (
        step_on(device, kind) for device in (CUDA, torch.device("cpu"))
    )
    assert loss == pytest.approx(expected_loss, rel=1e-3)
    for gradient, reference in zip(gradients, expected, strict=True):
        # A ReLU that is at zero up to rounding decides for the other side now and then.
        assert (gradient - reference).norm() <= 2e-2 * reference.norm() + 1e-6


def test_trains_resumes_and_validates(tmp_path: Path) -> None:
    config = replace(TINY, steps=4, validate_every=2)
    make_trainer(tmp_path, replace(config, device="cuda")).fit()
    trainer = make_trainer(tmp_path, replace(config, device="cuda"))
    assert (trainer.step, trainer.device.type) == (4, CUDA.type)
    lines = read_log(tmp_path / "log.jsonl")
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 4
    assert sum(line["kind"] == "validation" for line in lines) == 2
    make_trainer(tmp_path / "cpu", replace(config, device="cpu", validate_every=0)).fit()
    expected = [line["loss"] for line in read_log(tmp_path / "cpu" / "log.jsonl")]
    assert losses == pytest.approx(expected, rel=1e-2)


def test_trains_on_networks_of_families(tmp_path: Path) -> None:
    config = replace(
        TINY, device="cuda", mixture={"families": 1.0}, max_work=100.0, max_parameters=None, steps=6
    )
    make_trainer(tmp_path, config).fit()
    assert state_of(tmp_path)["skipped_steps"] == state_of(tmp_path)["left_out_networks"] == 0


@pytest.mark.parametrize("crop", [False, True])
def test_batches_are_made_on_the_card(crop: bool) -> None:
    images = make_images(64)
    (expected, labels), (found, found_labels) = (
        ImageStream(source, 16, seed=3).batch(5, crop, 12) for source in (images, images.to(CUDA))
    )
    assert found.is_cuda
    assert found_labels.is_cuda
    assert torch.equal(found_labels.cpu(), labels)
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"optimizer": "soap"}])
def test_trains_otherwise(tmp_path: Path, changes: dict[str, str]) -> None:
    make_trainer(tmp_path, replace(TINY, device="cuda", **changes)).fit()
    assert state_of(tmp_path)["step"] == TINY.steps
    assert state_of(tmp_path)["skipped_steps"] == 0


def test_evaluates_as_on_the_cpu() -> None:
    ghn = make_ghn("ghn2").eval()
    images: Images = make_images(128)
    expected = evaluate(ghn, "test", images, num_nets=3)
    found = evaluate(ghn.to(CUDA), "test", images, num_nets=3)
    for one, other in zip(found.top1, expected.top1, strict=True):
        # At most a handful of 128 images change their class by rounding.
        assert abs(one - other) < 5


def test_more_processes_than_gpus_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = torch.cuda.device_count()
    monkeypatch.setenv("LOCAL_RANK", str(count + 1))
    assert choose_device("cuda") == torch.device("cuda", 1 % count)
    monkeypatch.delenv("LOCAL_RANK")
    config = replace(TINY, device="cuda", steps=3, lr=1e-4, num_networks=400)
    make_trainer(tmp_path / "one", replace(config, meta_batch=2 * (count + 1))).fit()
    torchrun(tmp_path / "several", config, count + 1)
    runs = [
        [line["loss"] for line in read_log(tmp_path / name / "log.jsonl")]
        for name in ("one", "several")
    ]
    assert runs[1] == pytest.approx(runs[0], rel=3e-3)


def test_graphs_from_models_on_a_gpu() -> None:
    on_cpu, on_gpu = (Graph.from_model(classifier().to(device)) for device in ("cpu", CUDA))
    assert torch.equal(on_cpu.distances, on_gpu.distances)
    assert [str(node) for node in on_cpu.nodes] == [str(node) for node in on_gpu.nodes]


def test_graphs_of_edges_on_a_gpu() -> None:
    graph = Graph.from_model(classifier())
    moved = Graph(graph.nodes, graph.edges.to(CUDA))
    assert torch.equal(moved.edges, graph.edges)
    assert moved.digest() == graph.digest()
    ghn_fast.predict(classifier(), ghn2(), graph=moved)


def test_noise_of_a_generator_is_the_same_on_a_gpu() -> None:
    on_cpu, on_gpu = classifier(), classifier().to(CUDA)
    for model in (on_cpu, on_gpu):
        generator = torch.Generator().manual_seed(0)
        ghn_fast.refine_(model, orth=False, noise=0.5, generator=generator)
    for name, value in state_dict(on_gpu).items():
        torch.testing.assert_close(value, on_cpu.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_images_on_a_gpu_are_contiguous() -> None:
    images = normalise(make_images(4).images)
    moved = images_to_device(images, CUDA)
    assert moved.is_contiguous()
    assert torch.equal(moved.cpu(), images)
    assert images_to_device(images, torch.device("cpu")) is images
