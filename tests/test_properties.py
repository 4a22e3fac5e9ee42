"""Properties from embeddings, and the search by them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from ghn_fast import DeepNets1M, embed
from ghn_fast.cli.app import app
from ghn_fast.cli.errors import UsageError
from ghn_fast.evaluation import EvaluationError, Labels, NetworkLabels, load_labels
from ghn_fast.ghn import GHN, ghn2
from ghn_fast.nets import count_multiply_adds, count_parameters, sample_net_args
from ghn_fast.nets.stats import longest_path
from ghn_fast.properties import correlations, deviation_by_chance, search, statistics, steps_to


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2(hid=8, max_shape=(8, 8, 3, 3)).eval()


def labelled(split: str, index: int) -> NetworkLabels:
    """A network whose accuracy follows from its depth, and the rest from what is not in a graph."""
    net_args = sample_net_args(split, 0, index)
    depth = longest_path(DeepNets1M(split)[index])
    noise = float(np.random.default_rng(index).uniform(0, 1))
    curve = [10 + (1 + 4 * noise) * (part + 1) for part in range(10)]
    figures = {"predicted": 30 - depth, "inference": 50 * noise, "noisy": 9 * noise}
    sizes = (count_parameters(net_args), count_multiply_adds(net_args), depth)
    return NetworkLabels(split, index, *sizes, **figures, trained=depth, curve=curve)


@pytest.fixture(scope="module")
def labels() -> Labels:
    networks = [labelled(split, index) for split in ("test", "val") for index in range(40)]
    return Labels(30, 96, 0.25, 0.08, 100, "cpu", "a", "b", networks)


@pytest.fixture(scope="module")
def small_grid() -> object:
    with pytest.MonkeyPatch.context() as patch:
        grid = {"C": [10, 100], "gamma": ["auto"]}
        patch.setattr("ghn_fast.properties.GRID", grid)
        patch.setattr("ghn_fast.properties.RUNS", 2)
        yield


@pytest.mark.usefixtures("small_grid")
def test_what_embeddings_know_is_ranked_and_noise_is_not(ghn: GHN, labels: Labels) -> None:
    pytest.importorskip("sklearn")
    found = {row.name: row for row in correlations(labels, ghn)}
    assert len(found["accuracy"].embeddings) == 2
    assert min(found["accuracy"].embeddings) > 0.45
    assert min(found["accuracy"].statistics) > 0.6
    assert found["accuracy"].free["depth"] == 1.0
    assert found["accuracy"].free["accuracy with predicted parameters"] == -1.0
    for name in ("accuracy with noise", "inference time", "steps to learn"):
        assert max(map(abs, found[name].embeddings)) < 0.4
    assert found["accuracy with noise"].free["first fifth of the training"] == 1.0


@pytest.mark.usefixtures("small_grid")
def test_search_finds_the_deepest(ghn: GHN, labels: Labels) -> None:
    pytest.importorskip("sklearn")
    nets = DeepNets1M("search", num_nets=60)
    found = search(labels, ghn, "accuracy", nets)
    depths = [longest_path(graph) for graph in nets]
    assert depths[found.index] > np.quantile(depths, 0.8)
    assert found.value > found.median
    assert found.median == pytest.approx(np.median(depths), rel=0.25)
    assert search(labels, ghn, "inference time", nets).value < found.median


@pytest.mark.usefixtures("small_grid")
def test_search_takes_labels_in_any_order(ghn: GHN, labels: Labels) -> None:
    pytest.importorskip("sklearn")
    nets = DeepNets1M("search", num_nets=10)
    pairs = zip(labels.networks[:40], labels.networks[40:], strict=True)
    mixed = replace(labels, networks=[network for pair in pairs for network in pair])
    found, expected = (search(some, ghn, "accuracy", nets) for some in (mixed, labels))
    assert (found.index, found.value) == (expected.index, expected.value)


def test_statistics_of_graphs(labels: Labels) -> None:
    table = statistics(labels.networks[:3])
    graph = DeepNets1M("test")[2]
    counts = np.bincount(graph.node_types.numpy(), minlength=15)
    np.testing.assert_allclose(table[2, :15], counts / graph.num_nodes)
    sizes = (graph.num_nodes, longest_path(graph), *_sizes("test", 2))
    np.testing.assert_allclose(table[2, 15:], np.log(sizes))


def _sizes(split: str, index: int) -> tuple[int, int]:
    net_args = sample_net_args(split, 0, index)
    return count_parameters(net_args), count_multiply_adds(net_args)


@pytest.mark.parametrize(
    ("level", "expected"), [(20.0, 10.0), (30.0, 15.0), (5.0, 2.5), (60.0, 30.0), (40.0, 20.0)]
)
def test_steps_to_a_level(level: float, expected: float) -> None:
    assert steps_to(level, [10.0, 30.0, 50.0], 30) == pytest.approx(expected)


def test_steps_to_a_level_of_nothing() -> None:
    assert steps_to(0.0, [0.0, 0.0], 10) == 2.5


def test_too_few_labels(ghn: GHN, labels: Labels) -> None:
    with pytest.raises(ValueError, match="of 9 networks of val and 40 of test"):
        correlations(labels.with_networks(labels.networks[:49]), ghn)
    with pytest.raises(ValueError, match="there are 3 labels"):
        search(labels.with_networks(labels.networks[:3]), ghn, "accuracy", DeepNets1M("search"))


def test_without_scikit_learn(ghn: GHN, labels: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match="scikit-learn: pip install"):
        search(labels, ghn, "accuracy", DeepNets1M("search", num_nets=2))
    with pytest.raises(ImportError, match="scikit-learn: pip install"):
        correlations(labels, ghn)


def test_chance() -> None:
    """Of 24 orders of 4, of which there are 1, 3, 5, 6, 5, 3 and 1 with 0 to 6 inversions."""
    taus = [1 - inversions / 3 for inversions in range(7)]
    squares = sum(n * t * t for n, t in zip((1, 3, 5, 6, 5, 3, 1), taus, strict=True))
    assert deviation_by_chance(4) == pytest.approx((squares / 24) ** 0.5)


def test_files_of_one_table(labels: Labels, tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    labels.with_networks(labels.networks[:50]).save(files[0])
    labels.with_networks(labels.networks[45:]).save(files[1])
    assert load_labels(files) == labels
    other = Labels(**{**labels.settings(), "steps": 31}, networks=labels.networks)
    other.save(files[1])
    with pytest.raises(EvaluationError, match="has labels of other settings"):
        load_labels(files)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("small_grid")
def test_commands(labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setenv("COLUMNS", "80")
    labels.save(tmp_path / "labels.jsonl")
    result = run("nets", "properties", tmp_path / "labels.jsonl")
    assert result.exit_code == 0, result.exception
    title, _, table = result.output.partition("┏")
    title = " ".join(title.split())
    assert "40 networks of test; regressions on 40 of val, embeddings by ghn2-cifar10" in title
    assert "a tau of 0 ± 0.11" in title
    assert "…" not in table
    for word in ("accuracy", "noise", "inference time", "steps to", "embeddings", "multiply-adds"):
        assert word in table
    result = run("nets", "search", tmp_path / "labels.jsonl", "--num-nets", 3)
    assert "embedded 3 networks" in result.output
    assert "has the best predicted accuracy" in result.output
    for wrong in (("--by", "beauty"), ("--num-nets", 1, "--train", 1)):
        refused = run("nets", "search", tmp_path / "labels.jsonl", *wrong).exception
        assert isinstance(refused, UsageError)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten folders of six grey pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(60):
        path = folder / f"class{number % 10}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (number, number, number)).save(path)
    return folder


@pytest.mark.usefixtures("small_grid")
def test_what_is_found_is_trained_beside_random_ones(
    labels: Labels, pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    few_steps = Labels(**{**labels.settings(), "steps": 1, "width": 0.1}, networks=labels.networks)
    few_steps.save(tmp_path / "labels.jsonl")
    settings = ("--num-nets", 4, "--train", 2, "--data", pictures, "--device", "cpu")
    result = run("nets", "search", tmp_path / "labels.jsonl", *settings)
    assert result.exit_code == 0, result.exception
    *_, first, second, third, summary = result.output.splitlines()
    trained = [line.partition(": ")[0] for line in (first, second, third)]
    assert f"{trained[0]} has the best predicted accuracy" in result.output
    assert len({*trained}) == 3
    assert summary.startswith("found: ")
    assert "; 2 random ones: " in summary


def test_measure_command(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    settings = ("--split", "val", "--num-nets", 1, "--steps", 1, "--width", 0.1, "--data", pictures)
    result = run("nets", "measure", "--out", out, *settings, "--device", "cpu")
    assert result.exit_code == 0, result.exception
    assert f"1 networks in {out}" in result.output.replace("\n", "")
    assert [network.key for network in Labels.load(out).networks] == [("val", 0)]


def test_embeddings_are_those_of_the_networks(ghn: GHN, labels: Labels) -> None:
    from ghn_fast.properties import _embedded

    rows = _embedded(ghn)(labels.networks[3:5])
    expected = embed([DeepNets1M("test")[index] for index in (3, 4)], ghn).numpy()
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-6)
