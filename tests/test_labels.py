"""Labels of networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ghn_fast
from ghn_fast._system.random import seeded
from ghn_fast.data import Images
from ghn_fast.evaluation import (
    EvaluationError,
    Labels,
    NetworkLabels,
    load_labels,
    measure_labels,
    top1,
    train_network,
)
from ghn_fast.evaluation.labels import inference_time, narrowed, with_noise
from ghn_fast.evaluation.results import ghn_digest
from ghn_fast.evaluation.run import predicted_network
from ghn_fast.ghn import GHN, ghn2
from ghn_fast.graph import Graph
from ghn_fast.nets import build_ghost, build_net, count_parameters, sample_net_args
from ghn_fast.nets.stats import longest_path

SETTINGS = {"steps": 12, "width": 0.1}


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2(hid=8, max_shape=(16, 16, 7, 7)).eval()


@pytest.fixture(scope="module")
def images() -> Images:
    """Pictures of one grey value that tells their class."""
    labels = torch.arange(12) % 10
    pixels = (labels * 25).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    return Images(pixels.contiguous(), labels)


@pytest.fixture(scope="module")
def labels(ghn: GHN, images: Images) -> Labels:
    return measure_labels(ghn, images, images, num_nets=1, **SETTINGS)


def test_of_the_splits_in_turn(ghn: GHN, images: Images, tmp_path: Path) -> None:
    measured: list[tuple[str, int]] = []
    found = measure_labels(
        ghn,
        images,
        images,
        num_nets=2,
        steps=1,
        width=0.1,
        labels_file=tmp_path / "labels.jsonl",
        on_network=lambda network: measured.append(network.key),
    )
    assert measured == [("val", 0), ("test", 0), ("val", 1), ("test", 1)]
    assert [network.key for network in found.networks] == sorted(measured)
    assert Labels.load(tmp_path / "labels.jsonl") == found


def test_those_that_are_shipped() -> None:
    """They are of both splits, and of the GHN that is shipped with them."""
    shipped = load_labels()
    assert shipped.ghn_digest == ghn_digest(ghn_fast.from_pretrained("ghn2-cifar10"))
    assert {network.split for network in shipped.networks} == {"val", "test"}
    for network in shipped.networks[::20]:
        net_args = sample_net_args(network.split, 0, network.index)
        assert network.parameters == count_parameters(net_args, 10, False)


def test_what_costs_nothing(labels: Labels) -> None:
    for network in labels.networks:
        net_args = sample_net_args(network.split, 0, network.index)
        model = build_net(net_args, 10, False)
        assert network.parameters == sum(p.numel() for p in model.parameters())
        assert network.depth == longest_path(Graph.from_model(model))


def test_what_is_measured(ghn: GHN, images: Images, labels: Labels) -> None:
    network = labels.networks[1]
    net_args = sample_net_args("val", 0, 0)
    assert network.key == ("val", 0)
    with torch.no_grad():
        predicted = predicted_network(ghn, net_args, is_large=False)
    assert network.predicted == pytest.approx(top1(predicted, images), abs=0.01)
    narrow = narrowed(net_args, 0.1)
    assert count_parameters(narrow) < count_parameters(net_args) / 8
    with seeded(0):
        model = build_net(narrow, 10, False)
    seen: list[torch.Tensor] = []
    train_network(
        model, images, 12, 0, on_step=lambda out, of: seen.append(out.argmax(dim=1) == of)
    )
    assert network.trained == pytest.approx(top1(model, images), abs=0.01)
    assert network.noisy == pytest.approx(top1(model, with_noise(images, 0.08)), abs=0.01)
    assert len(network.curve) == 10
    first, last = torch.cat(seen[:2]), seen[-1]
    assert network.curve[0] == pytest.approx(100 * float(first.float().mean()), abs=0.01)
    assert network.curve[-1] == pytest.approx(100 * float(last.float().mean()), abs=0.01)
    assert network.inference > 0


def test_noise_has_the_spread_that_was_asked_for() -> None:
    grey = Images(torch.full((4, 3, 32, 32), 128, dtype=torch.uint8), torch.zeros(4).long())
    noisy = with_noise(grey, 0.08).images.double() / 255
    assert float(noisy.std()) == pytest.approx(0.08, rel=0.03)
    assert torch.equal(with_noise(grey, 0.08).images, with_noise(grey, 0.08).images)
    white = Images(torch.full_like(grey.images, 255), grey.labels)
    assert int(with_noise(white, 0.08).images.min()) > 100  # none is beyond 255 and wraps


def test_every_network_has_a_narrower_one() -> None:
    for split in ("val", "test"):
        for index in range(500):
            net_args = sample_net_args(split, 0, index)
            assert narrowed(net_args, 1.0) == net_args
            assert narrowed(net_args, 0.25)["C"] % 8 == 0  # as many heads as attention has
            if index < 10:
                build_ghost(narrowed(net_args, 0.25), 10, False)


def test_it_goes_on_where_it_stopped(
    ghn: GHN, images: Images, labels: Labels, tmp_path: Path
) -> None:
    file = tmp_path / "labels.jsonl"
    stopped = measure_labels(
        ghn, images, images, num_nets=1, **SETTINGS, seconds=0.0, labels_file=file
    )
    assert stopped.networks == []
    kept = {**vars(labels.networks[0]), "trained": 99.0}
    file.write_text(file.read_text() + json.dumps(kept) + "\n" + '{"split": "va')
    found = measure_labels(ghn, images, images, num_nets=1, **SETTINGS, labels_file=file)
    assert found.networks[0].trained == 99.0  # not measured again
    assert found.networks[1].trained == labels.networks[1].trained
    assert Labels.load(file) == found


def test_another_ghn_only_predicts_anew(
    images: Images, labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    other = ghn2(hid=8, max_shape=(16, 16, 7, 7)).eval()
    monkeypatch.setattr("ghn_fast.evaluation.labels.train_at_width", None)
    found = measure_labels(other, images, images, num_nets=1, **SETTINGS, known=labels)
    assert found.ghn_digest != labels.ghn_digest
    for network, before in zip(found.networks, labels.networks, strict=True):
        with torch.no_grad():
            model = predicted_network(
                other, sample_net_args(network.split, 0, network.index), False
            )
        assert network.predicted == pytest.approx(top1(model, images), abs=0.01)
        assert replace(network, predicted=before.predicted) == before
    with pytest.raises(EvaluationError, match="what is known is of other settings"):
        measure_labels(other, images, images, num_nets=1, steps=3, width=0.1, known=labels)


def test_a_network_without_memory_is_left_out(
    ghn: GHN, images: Images, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(job: object, split: str, index: int) -> NetworkLabels:
        if split == "val":
            raise torch.OutOfMemoryError
        return labels.networks[0]

    monkeypatch.setattr("ghn_fast.evaluation.labels._Job.run", run)
    file = tmp_path / "labels.jsonl"
    with pytest.warns(UserWarning, match="no memory for val:0"):
        found = measure_labels(ghn, images, images, num_nets=1, **SETTINGS, labels_file=file)
    assert found.networks == Labels.load(file).networks == labels.networks[:1]


@pytest.mark.parametrize(("name", "value"), [("steps", 3), ("width", 0.5)])
def test_a_file_of_other_settings_is_refused(
    ghn: GHN, images: Images, labels: Labels, tmp_path: Path, name: str, value: float
) -> None:
    labels.save(tmp_path / "labels.jsonl")
    other = {**SETTINGS, name: value, "labels_file": tmp_path / "labels.jsonl"}
    with pytest.raises(EvaluationError, match=name):
        measure_labels(ghn, images, images, num_nets=1, **other)
    assert Labels.load(tmp_path / "labels.jsonl") == labels


def test_time_is_for_an_image() -> None:
    ran: list[int] = []

    class Slow(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            ran.append(len(images))
            return images.sum()

    seconds = inference_time(Slow(), torch.zeros(8, 3, 4, 4), runs=4)
    assert ran == [8] * 5
    assert 0 < seconds < 0.1
