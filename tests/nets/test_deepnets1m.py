"""DeepNets-1M as a data set, sampled and from published files."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from ghn_fast.nets import DeepNets1M, NetsFileError, Network, graph_of

SIZES = {"train": 1_000_000, "val": 500, "test": 500, "wide": 100, "predefined": 2}


@pytest.mark.parametrize("split", sorted(SIZES))
def test_sizes(split: str) -> None:
    assert len(DeepNets1M(split)) == SIZES[split]


def test_items_are_graphs_of_their_networks() -> None:
    nets = DeepNets1M("test", num_nets=3)
    for index, graph in enumerate(nets):
        assert graph.index == index
        assert graph.net_args == nets.net_args(index)
        network = Network(**graph.net_args, num_classes=10, is_imagenet_input=False)
        shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
        nodes = {node.parameter: node.shape for node in graph.nodes if node.parameter}
        assert nodes.items() <= shapes.items()
    assert index == 2
    assert nets[-1].index == 2
    with pytest.raises(IndexError, match="network 3 of 3 in split 'test'; num_nets= asks for more"):
        nets[3]
    with pytest.raises(TypeError, match="a network is taken by its number"):
        nets[1:3]  # type: ignore[index]


def test_large_images_have_a_thousand_classes() -> None:
    graph = DeepNets1M("val", large_images=True)[0]
    assert graph.nodes[-1].shape == (1000,)
    assert DeepNets1M("val", num_classes=37)[0].nodes[-1].shape == (37,)


def test_seed_makes_another_stream() -> None:
    first, second = (DeepNets1M("train", seed=seed)[5].net_args for seed in (0, 1))
    assert first != second
    assert first == DeepNets1M("train", seed=0)[5].net_args


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(shared: Path, workers: int) -> None:
    nets = DeepNets1M("train", num_nets=4, nets_dir=shared / "conformance" / "deepnets1m")
    assert nets[0].num_nodes  # the parent's file is open when the workers start
    loader = DataLoader(nets, batch_size=2, num_workers=workers, collate_fn=list)
    digests = [graph.digest() for batch in loader for graph in batch]
    assert digests == [graph.digest() for graph in nets]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tiny"}, "unknown split 'tiny'"),
        ({"split": "predefined", "num_nets": 3}, "split 'predefined' has 2 networks"),
        ({"num_nets": -1}, "num_nets is -1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepNets1M(**arguments)


# Published files.


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """A copy of the published files that can be damaged."""
    for path in (shared / "conformance" / "deepnets1m").iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def change_meta(folder: Path, change: Any) -> None:
    path = folder / "deepnets1m_train_meta.json"
    content = json.loads(path.read_text())
    change(content["train"])
    path.write_text(json.dumps(content))


def change_data(folder: Path, change: Any) -> None:
    import h5py

    with h5py.File(folder / "deepnets1m_train.hdf5", "r+") as file:
        change(file["train"])


def test_published_graphs(shared: Path) -> None:
    nets = DeepNets1M(nets_dir=shared / "conformance" / "deepnets1m")
    cases = json.loads((shared / "conformance" / "deepnets_20.json").read_text())
    assert len(nets) == len(cases) == 20
    for case, graph in zip(cases, nets, strict=True):
        assert graph.num_nodes == case["nodes"]
        assert torch.bincount(graph.node_types, minlength=15).tolist() == case["types"]
        assert int((graph.distances > 0).sum()) == case["edges_all"]
        assert int(graph.distances.sum(dtype=torch.int64)) == case["dist_sum"]
        assert graph.net_args is not None
        ours = graph_of(graph.net_args)
        assert sorted(map(repr, graph.nodes)) == sorted(map(repr, ours.nodes))
        assert graph.unused.keys() == ours.unused.keys()
        drawn = {**graph.net_args, "C": 32, "fc_dim": 64}
        assert drawn == {**case["net_args"], "genotype": graph.net_args["genotype"]}


def test_stored_width_is_used(folder: Path) -> None:
    change_meta(folder, lambda part: [net.update(C=48) for net in part["nets"]])
    content = json.loads((folder / "deepnets1m_train_meta.json").read_text())
    content = {"wide": content["train"], "test": content["train"]}
    (folder / "deepnets1m_eval_meta.json").write_text(json.dumps(content))
    (folder / "deepnets1m_eval.hdf5").touch()
    widths = {
        (split, large): DeepNets1M(split, nets_dir=folder, large_images=large).net_args(0)["C"]
        for split in ("test", "wide")
        for large in (False, True)
    }
    assert widths == {
        ("test", False): 48, ("test", True): 48, ("wide", False): 192, ("wide", True): 96
    }  # fmt: skip


def test_names_of_older_files(folder: Path) -> None:
    expected = DeepNets1M(nets_dir=folder)[0].nodes

    def rename(part: dict[str, Any]) -> None:
        for key, name in part["meta"]["unique_op_names"].items():
            name = name.replace("to_out.0.weight", "to_out.0.")
            part["meta"]["unique_op_names"][key] = name.replace(".op.", ".")

    change_meta(folder, lambda part: rename(part))

    # "preprocess0.op.1" is never shortened.
    def restore(part: dict[str, Any]) -> None:
        names = part["meta"]["unique_op_names"]
        for key, name in names.items():
            if name.startswith("preprocess") and "conv_" not in name and "bn" not in name:
                names[key] = name.replace("preprocess0.", "preprocess0.op.").replace(
                    "preprocess1.", "preprocess1.op."
                )

    change_meta(folder, restore)
    assert DeepNets1M(nets_dir=folder)[0].nodes == expected


def test_missing_files(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"deepnets1m_eval\.hdf5 does not exist"):
        DeepNets1M("val", nets_dir=folder)
    (folder / "deepnets1m_train_meta.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"deepnets1m_train_meta\.json does not exist"):
        DeepNets1M(nets_dir=folder)


def test_truncated_files(folder: Path) -> None:
    data = folder / "deepnets1m_train.hdf5"
    data.write_bytes(data.read_bytes()[:50_000])
    nets = DeepNets1M(nets_dir=folder)
    with pytest.raises(NetsFileError, match=r"deepnets1m_train\.hdf5 cannot be opened: .*trunc"):
        nets[0]
    meta = folder / "deepnets1m_train_meta.json"
    meta.write_text(meta.read_text()[:1000])
    with pytest.raises(NetsFileError, match=r"deepnets1m_train_meta\.json is not JSON"):
        DeepNets1M(nets_dir=folder)


def remove(name: str) -> Any:
    return lambda group: group.__delitem__(name)


def reverse_nodes(group: Any) -> None:
    group["3/nodes"][...] = group["3/nodes"][()][::-1]


def transpose(group: Any) -> None:
    group["3/adj"][...] = group["3/adj"][()].T


def shorten(group: Any) -> None:
    rows = group["3/nodes"][()]
    del group["3/nodes"]
    group["3/nodes"] = rows[:-1]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (remove("3"), "cannot be read"),
        (remove("3/adj"), "cannot be read"),
        (shorten, r"'adj' is \(335, 335\) and 'nodes' is \(334, 3\)"),
        (transpose, "not in topological order"),
        (lambda group: group["3/nodes"].__setitem__((5, 0), 99), "does not name"),
        (lambda group: group["3/nodes"].__setitem__((5, 1), 77), "no parameter 'cells.77"),
    ],
)
def test_damaged_data(folder: Path, change: Any, cause: str) -> None:
    change_data(folder, change)
    nets = DeepNets1M(nets_dir=folder)
    with pytest.raises(NetsFileError, match=f"train.hdf5, split 'train', network 3: .*{cause}"):
        nets[3]
    assert nets[4].num_nodes == 301


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda part: part["nets"][3].pop("ks"), "the JSON lacks ks"),
        (lambda part: part["nets"][3].update(num_nodes=334), "335 nodes, 334 according to"),
        (lambda part: part["nets"][3]["genotype"].pop("reduce"), "the genotype lacks reduce"),
        (
            lambda part: part["nets"][3]["genotype"]["normal"].__setitem__(0, ["conv_9x9", 0]),
            "unknown operation 'conv_9x9'",
        ),
        (lambda part: part["meta"]["primitives_ext"].update({"1": "conf"}), "primitive 'conf'"),
    ],
)
def test_damaged_meta(folder: Path, change: Any, cause: str) -> None:
    change_meta(folder, change)
    nets = DeepNets1M(nets_dir=folder)
    with pytest.raises(NetsFileError, match=f"split 'train', network 3: .*{cause}"):
        nets[3]


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("n_cells", 10**9, "n_cells is 1000000000; it has to be int from 1 to 1000"),
        ("fc_layers", 10**9, "fc_layers is 1000000000"),
        ("C", 10**9, "C is 1000000000"),
        ("C_mult", 10**9, "C_mult is 1000000000"),
        ("n_cells", "9", "n_cells is '9'"),
        ("ks", [3], "ks is a list"),
        ("ks", -1, "ks is -1"),
        ("ks", 4, "ks must be odd"),
        ("fc_dim", 64.5, r"fc_dim is 64\.5"),
        ("C", "32", "C is '32'"),
        ("stem_type", 5, "stem_type is 5"),
        ("stem_pool", None, "stem_pool is None; it has to be bool"),
        ("norm", 1, "norm is 1"),
        ("norm", "x", "unknown norm 'x'"),
    ],
)
def test_arguments_of_no_network(folder: Path, name: str, value: Any, cause: str) -> None:
    change_meta(folder, lambda part: part["nets"][3].update({name: value}))
    nets = DeepNets1M(nets_dir=folder)
    with pytest.raises(NetsFileError, match=f"meta.json, split 'train', network 3: {cause}"):
        nets[3]


def test_a_genotype_of_more_operations_than_there_are(folder: Path) -> None:
    def grow(part: dict[str, Any]) -> None:
        part["nets"][3]["n_cells"] = 1000
        part["nets"][3]["genotype"]["normal"] += [["skip_connect", 0]] * 100

    change_meta(folder, grow)
    with pytest.raises(NetsFileError, match=r"network 3: it has \d+ operations, more than 50000"):
        DeepNets1M(nets_dir=folder)[3]
    change_meta(
        folder, lambda part: part["nets"][3]["genotype"].update(normal_concat=[float("inf")])
    )
    with pytest.raises(NetsFileError, match="network 3: cannot convert float infinity"):
        DeepNets1M(nets_dir=folder)[3]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda part: part["nets"].__setitem__(3, None), "None instead of a dict"),
        (lambda part: part["nets"].__setitem__(3, 7), "7 instead of a dict"),
        (lambda part: part.update(nets=7), "not iterable"),
        (lambda part: part["meta"]["primitives_ext"].update({"1": 7}), "7 instead of a str"),
        (lambda part: part["meta"]["unique_op_names"].update({"1": []}), "a list instead of a str"),
    ],
)
def test_meta_of_other_types(folder: Path, change: Any, cause: str) -> None:
    change_meta(folder, change)
    with pytest.raises(NetsFileError, match=f"meta.json, split 'train': TypeError: .*{cause}"):
        DeepNets1M(nets_dir=folder)


def test_json_nested_deeper_than_the_stack(folder: Path) -> None:
    (folder / "deepnets1m_train_meta.json").write_text("[" * 100_000)
    with pytest.raises(NetsFileError, match=r"meta\.json is not JSON"):
        DeepNets1M(nets_dir=folder)


def put(name: str, value: Any) -> Any:
    """Puts something else where an array or a group was."""

    def change(group: Any) -> None:
        del group[name]
        group.create_group(name) if value is None else group.create_dataset(name, data=value)

    return change


def say_a_size(group: Any) -> None:
    """Arrays without content."""
    del group["3"]
    group.create_dataset("3/adj", (400_000, 400_000), "u1", chunks=(1000, 1000))
    group.create_dataset("3/nodes", (400_000, 3), "u2", chunks=(1000, 3))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (put("3", [1, 2]), "cannot be read"),
        (put("3/adj", None), "cannot be read: .*no array of integers"),
        (put("3/nodes", None), "cannot be read: .*no array of integers"),
        (put("3/adj", "text"), "cannot be read: .*no array of integers"),
        (put("3/nodes", [[0.5] * 3] * 335), "cannot be read: .*no array of integers"),
        (put("3/adj", 7), r"'adj' is \(\) and 'nodes' is \(335, 3\)"),
        (put("3/nodes", 7), r"'nodes' is \(\)"),
        (say_a_size, "has 400000 nodes, 335 according to the JSON"),
    ],
)
def test_data_of_other_types(folder: Path, change: Any, cause: str) -> None:
    change_data(folder, change)
    nets = DeepNets1M(nets_dir=folder)
    with pytest.raises(NetsFileError, match=f"train.hdf5, split 'train', network 3: .*{cause}"):
        nets[3]


def test_no_network_is_as_large_as_a_file_may_say(folder: Path) -> None:
    change_data(folder, say_a_size)
    change_meta(folder, lambda part: part["nets"][3].pop("num_nodes"))
    with pytest.raises(NetsFileError, match="has 400000 nodes; networks have 1 to 10000"):
        DeepNets1M(nets_dir=folder)[3]


def test_a_split_that_is_an_array(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "deepnets1m_train.hdf5", "r+") as file:
        del file["train"]
        file["train"] = [1, 2]
    with pytest.raises(NetsFileError, match="network 3: cannot be read"):
        DeepNets1M(nets_dir=folder)[3]


def test_meta_without_the_split(folder: Path) -> None:
    for name in ("deepnets1m_train.hdf5", "deepnets1m_train_meta.json"):
        shutil.copyfile(folder / name, folder / name.replace("train", "search"))
    with pytest.raises(NetsFileError, match=r"search_meta\.json has no split 'search'"):
        DeepNets1M("search", nets_dir=folder)
    change_meta(folder, lambda part: part.pop("meta"))
    with pytest.raises(NetsFileError, match="split 'train': KeyError: 'meta'"):
        DeepNets1M("train", nets_dir=folder)


def test_pickled_data_set_opens_its_own_file(folder: Path) -> None:
    nets = DeepNets1M(nets_dir=folder)
    digest = nets[0].digest()
    assert pickle.loads(pickle.dumps(nets))[0].digest() == digest


@pytest.mark.parametrize(
    ("split", "digest"),
    [
        ("val", "c3de6e07a0d425c5"),
        ("test", "e4744354298b89d5"),
        ("wide", "365d183b2635cd4b"),
        ("deep", "46784f947b7de190"),
        ("dense", "b3669c6080d9104e"),
        ("bnfree", "ecd9be40695dd139"),
        ("predefined", "6b2749be0f5ea58c"),
    ],
)
def test_evaluation_splits_never_change(split: str, digest: str) -> None:
    """All of their networks: results of different versions would not be comparable."""
    assert DeepNets1M(split).digest()[:16] == digest
