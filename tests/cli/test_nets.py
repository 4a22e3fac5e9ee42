"""The commands nets and draw."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from ghn_fast.cli.app import app
from ghn_fast.cli.errors import UsageError
from ghn_fast.cli.nets import _print_histogram
from ghn_fast.nets import DeepNets1M, count_parameters, sample_net_args, to_dict
from ghn_fast.nets.families import sample_member


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_sample() -> None:
    result = run("nets", "sample", "--split", "val", "--index", 3, "--count", 2)
    assert result.exit_code == 0
    graph = DeepNets1M("val")[3]
    assert f"val:3  {graph.num_nodes} nodes, {len(graph.edges)} edges" in result.output
    assert "val:4" in result.output
    assert "reduce: 2 = " in result.output


def test_the_last_network_of_all_can_be_sampled() -> None:
    last = 2**64 - 1
    assert f"train:{last} " in run("nets", "sample", "--index", last).output
    with pytest.raises(ValueError, match=r"index must be from 0 to 2\*\*64 - 1"):
        DeepNets1M("val", num_nets=last + 2)[last + 1]


def test_sample_as_json_beyond_the_published_size() -> None:
    result = run("nets", "sample", "--index", 1_000_000, "--json", "--seed", 4)
    read = json.loads(result.output)
    expected = sample_net_args("train", 4, 1_000_000)
    assert read == {
        "split": "train",
        "index": 1_000_000,
        **expected,
        "genotype": json.loads(json.dumps(to_dict(expected["genotype"]))),
    }


def test_sample_of_predefined() -> None:
    result = run("nets", "sample", "--split", "predefined", "--count", 2)
    assert "resnet50 of torchvision" in result.output
    assert "msa(1)" in result.output
    assert isinstance(
        run("nets", "sample", "--split", "predefined", "--index", 2).exception, UsageError
    )


def test_sample_of_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # which a drawing does without
    where = ("--split", "families/val", "--index", 5)
    member = sample_member("families/val", 0, 5)
    result = run("nets", "sample", *where, "--draw", tmp_path)
    nodes = f"families/val:5  {member.graph.num_nodes} nodes, {len(member.graph.edges)} edges"
    assert nodes in result.output
    assert member.family in result.output
    assert (tmp_path / "families-val-5.svg").exists()
    read = json.loads(run("nets", "sample", *where, "--json").output)
    assert (read["family"], read["parameters"]) == (member.family, member.parameters)
    of_one = ("--split", "families/val/residual", "--index", 5, "--json")
    line = json.loads(run("nets", "sample", *of_one).output)
    member = sample_member("families/val", 0, 5, family="residual")
    assert (line["split"], line["family"]) == ("families/val/residual", "residual")
    assert line["modules"] == str(member.model)
    refused = run("nets", "sample", "--split", "families/val/residuals").exception
    assert "unknown family 'residuals'; there are" in str(refused)
    refused = run("nets", "sample", "--split", "families/dev").exception
    assert isinstance(refused, UsageError)
    assert "there are families/train, families/val, families/test" in str(refused)
    assert isinstance(run("nets", "sample", *where, "--large-images").exception, UsageError)


def test_stats_of_families() -> None:
    result = run("nets", "stats", "--split", "families/test", "--count", 3)
    assert "3 networks of split families/test, 32 x 32 images, 10 classes" in result.output
    result = run("nets", "stats", "--split", "families/test/plain", "--count", 2)
    assert "2 networks of split families/test/plain" in result.output
    assert "multiply-adds" in result.output


def test_list() -> None:
    result = run("nets", "list", "--split", "bnfree", "--split", "predefined")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) == 100 + 1 + 2 + 1
    for index, graph in enumerate(DeepNets1M("bnfree")):
        # Those too that do not reach the output, of which the graph knows nothing.
        parameters = count_parameters(sample_net_args("bnfree", 0, index))
        start = f"bnfree:{index}  {graph.num_nodes} nodes, {parameters / 1e6:.3g} M parameters: "
        assert lines[index].startswith(start)
    assert lines[100] == f"bnfree: 100 networks, SHA-256 {DeepNets1M('bnfree').digest()}"
    assert lines[101].endswith("23.5 M parameters: resnet50 of torchvision")


def test_stats() -> None:
    result = run("nets", "stats", "--split", "deep", "--count", 30, "--bins", 4)
    assert result.exit_code == 0
    assert "30 networks of split deep" in result.output
    for title in ("nodes", "depth", "parameters", "multiply-adds", "edges at a node", "sep_conv"):
        assert title in result.output
    shares = [line for line in result.output.splitlines() if "%" in line and "█" in line]
    assert len(shares) > 20


def test_bins_whose_labels_are_rounded_alike_keep_their_bars(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parameters = np.array([1_231_000, 1_231_000, 1_231_100, 1_231_200, 1_234_000])
    _print_histogram(Console(width=100), "parameters", parameters, 10)
    _, *bars = capsys.readouterr().out.split("1.23 M to 1.23 M")
    assert [bar.split()[0] for bar in bars] == ["80.0", *["0.0"] * 8, "20.0"]


def test_export_and_reading_it(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    result = run("nets", "export", "--split", "train", "--range", "7:12", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "wrote" in result.output
    nets = DeepNets1M(nets_dir=tmp_path)
    assert len(nets) == 5
    assert nets.net_args(0)["genotype"] == sample_net_args("train", 0, 7)["genotype"]
    listed = run("nets", "sample", "--nets-dir", tmp_path, "--index", 4)
    assert "train:4" in listed.output
    assert run("nets", "stats", "--nets-dir", tmp_path).exit_code == 0
    again = run("nets", "export", "--split", "train", "--count", 5, "--out", tmp_path)
    assert isinstance(again.exception, FileExistsError)


def test_export_of_the_evaluation_file(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    assert run("nets", "export", "--split", "eval", "--count", 2, "--out", tmp_path).exit_code == 0
    for split in ("val", "test", "wide", "deep", "dense", "bnfree"):
        assert len(DeepNets1M(split, nets_dir=tmp_path)) == 2


@pytest.mark.parametrize(
    "arguments", [("--range", "5"), ("--range", "5:5"), ("--range", "0:5", "--count", "3")]
)
def test_bad_ranges(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = run("nets", "export", "--split", "val", "--out", tmp_path, *arguments)
    assert isinstance(result.exception, UsageError)


@pytest.mark.parametrize("name", ["val:3", "predefined:1", "squeezenet1_1"])
def test_draw(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    result = run("draw", name, "--out", path)
    assert result.exit_code == 0, result.output
    assert f"wrote {path}" in result.output.replace("\n", "")
    assert "<svg" in path.read_text()
