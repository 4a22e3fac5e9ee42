from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from ghn_fast.nets import Genotype, sample_net_args
from ghn_fast.ppuda.deepnets1m import loader as published
from ghn_fast.ppuda.deepnets1m.graph import GraphBatch
from ghn_fast.ppuda.deepnets1m.loader import DeepNets1M
from ghn_fast.ppuda.deepnets1m.net import Network
from ghn_fast.ppuda.ghn.nn import GHN

pytestmark = pytest.mark.filterwarnings("ignore:there is no .*hdf5:UserWarning")


def test_training_batches(tmp_path: Path) -> None:
    batches = DeepNets1M.loader(3, split="train", nets_dir=tmp_path, virtual_edges=50, num_nets=7)
    found = list(islice(batches, 6))
    assert [len(batch) for batch in found] == [3, 3, 1] * 2
    for epoch in (found[:3], found[3:]):
        assert sorted(index for batch in epoch for index in batch.net_inds) == list(range(7))
    batch = found[0].to_device("cpu")
    assert isinstance(batch, GraphBatch)
    for graph, net_args in zip(batch, batch.net_args, strict=True):
        assert isinstance(net_args["genotype"], Genotype)
        net = Network(num_classes=10, is_imagenet_input=False, light=True, **net_args)
        names = {name for name, _ in net.named_parameters()}
        assert {entry[1] for cell in graph.node_info for entry in cell} - names <= {
            "max_pool",
            "avg_pool",
        }
    assert int(batch.edges[:, 2].max()) > 1


def test_order_follows_the_seed(tmp_path: Path) -> None:
    def first() -> list[int]:
        torch.manual_seed(5)
        batches = DeepNets1M.loader(4, split="train", nets_dir=tmp_path, num_nets=1000)
        return next(batches).net_inds

    assert first() == first()


def test_other_splits_are_in_order(tmp_path: Path) -> None:
    graphs = DeepNets1M.loader(split="wide", nets_dir=tmp_path, num_nets=3)
    assert len(graphs) == 3
    for _ in range(2):
        assert [batch.net_inds for batch in graphs] == [[0], [1], [2]]
    batch = next(iter(graphs))
    assert batch.net_args[0] == sample_net_args("wide", 0, 0)
    assert int(batch[0].edges[:, 2].max()) == 1


def test_one_network(tmp_path: Path) -> None:
    graphs = DeepNets1M.loader(split="val", nets_dir=tmp_path, arch="7", virtual_edges=50)
    assert [batch.net_inds for batch in graphs] == [[7]]
    with pytest.raises(IndexError, match="500 networks"):
        DeepNets1M.loader(split="val", nets_dir=tmp_path, arch=500)


def test_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(DeepNets1M("val", tmp_path, num_nets=1000, verbose=True)) == 500
    assert "500 of 500" in capsys.readouterr().out
    assert len(DeepNets1M("train", tmp_path)) == 1_000_000
    with pytest.raises(ValueError, match="virtual_edges"):
        DeepNets1M("val", tmp_path, virtual_edges=0)
    with pytest.raises(ValueError, match="unknown split"):
        DeepNets1M("tset", tmp_path)


def test_predefined(tmp_path: Path) -> None:
    graphs = DeepNets1M.loader(split="predefined", nets_dir=tmp_path)
    resnet, vit = (batch.net_args[0] for batch in graphs)
    assert resnet["genotype"] == "resnet50"
    assert "msa" in vit["genotype"].operations


def test_too_many_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "MAX_NODES_BATCH", 1)
    monkeypatch.setattr(published, "_MOST_REFUSALS", 3)
    with pytest.raises(ValueError, match="smaller meta_batch_size"):
        next(DeepNets1M.loader(2, split="train", nets_dir=tmp_path, num_nets=4))


def test_sampled_networks_are_announced(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"deepnets1m_eval\.hdf5.*sampled"):
        DeepNets1M.loader(split="test", nets_dir=tmp_path)


@pytest.mark.parametrize("name", ["ghn1_cifar10", "ghn2_cifar10", "mlp_cifar10"])
def test_published_files(name: str, shared: Path) -> None:
    """From the published files, the public code's own predictions."""
    pytest.importorskip("h5py")
    conformance = shared / "conformance"
    ghn = GHN.load(conformance / "checkpoints" / f"{name}_random.pt", debug_level=0, device="cpu")
    entries = json.loads((conformance / "deepnets_20.json").read_text())
    nets = DeepNets1M("train", conformance / "deepnets1m", virtual_edges=50 if ghn.ve else 1)
    assert len(nets) == 20
    for index in (0, 13):
        net = Network(num_classes=10, is_imagenet_input=False, **entries[index]["net_args"])
        expected = entries[index]["predictions"][name]
        _, x = ghn(net, GraphBatch([nets[index]]), return_embeddings=True)
        norm = float(x.detach().mean(dim=0).norm())
        assert norm == pytest.approx(expected["embedding_mean_norm"], rel=1e-4)
        parameters = dict(net.named_parameters())
        for key, (count, norm, _) in expected["params"].items():
            assert parameters[key].numel() == count
            assert float(parameters[key].detach().double().norm()) == pytest.approx(
                norm, rel=1e-4, abs=1e-6
            )
