from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from ghn_fast.checkpoint import CheckpointError, files, load, load_ghn, load_metadata, save
from ghn_fast.ghn import GHN, GHN3, GHN3Config, GHNConfig, ghn1, ghn2, ghn3, make_ghn
from ghn_fast.ghn.config import DECODERS, HYPERNETS
from ghn_fast.ghn.logah import LoGAH, LoGAHConfig

SMALL = {"hid": 8, "max_shape": (8, 8, 3, 3)}


def small_ghn2() -> GHN:
    return ghn2(**SMALL)


def small_ghn3() -> GHN:
    return ghn3("t", **SMALL, num_classes=10, layers=2, heads=2)


MAKERS = {
    "ghn1": lambda: ghn1(**SMALL),
    "ghn2": small_ghn2,
    "ghn3": small_ghn3,
    "logah": lambda: LoGAH(LoGAHConfig(hid=16, layers=1, heads=2, lora_r=4, max_ck_lora=8)),
    "mlp": lambda: ghn2(hypernet="mlp", **SMALL),
    "mlp without ve": lambda: ghn2(hypernet="mlp", ve=False, **SMALL),
    "mlp decoder": lambda: GHN(GHNConfig(decoder="mlp", **SMALL)),  # type: ignore[arg-type]
    "wide": lambda: ghn2(num_classes=100, hid=16, max_shape=(12, 8, 5, 5)),
}


def ppuda_checkpoint(ghn: GHN, **config: Any) -> dict[str, Any]:
    values = {**ghn.config.to_dict(), **config}
    optimizer = torch.optim.Adam(ghn.parameters()).state_dict()
    return {"state_dict": ghn.state_dict(), "optimizer": optimizer, "epoch": 3, "config": values}


def assert_same(path: Path, ghn: GHN) -> None:
    config, state = load(path)
    assert config == ghn.config
    assert type(config) is type(ghn.config)
    expected = ghn.state_dict()
    assert set(state) == set(expected)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


# ---------------------------------------------------------------- our own format


@pytest.mark.parametrize("name", MAKERS)
def test_round_trip(tmp_path: Path, name: str) -> None:
    ghn = MAKERS[name]()
    save(ghn, tmp_path / "x.safetensors")
    assert_same(tmp_path / "x.safetensors", ghn)
    loaded = load_ghn(tmp_path / "x.safetensors")
    assert type(loaded) is type(ghn)
    assert not loaded.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())


def test_a_header_may_name_tensors_in_any_order(tmp_path: Path) -> None:
    file, ghn = tmp_path / "ghn.safetensors", small_ghn2()
    save(ghn, file)
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    reordered = json.dumps(dict(reversed(header.items())), separators=(",", ":")).encode()
    file.write_bytes(content[:8] + reordered.ljust(size) + content[8 + size :])
    assert_same(file, ghn)


def test_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(small_ghn2(), path, metadata={"steps": "10", "data": "CIFAR-10"})
    assert load_metadata(path) == {"steps": "10", "data": "CIFAR-10"}
    with pytest.raises(ValueError, match=r"ghn_fast\.config"):
        save(small_ghn2(), path, metadata={"ghn_fast.config": "{}"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, device="meta"), "w has no values in memory, or is sparse"),
        (torch.ones(2).to_sparse(), "w has no values in memory, or is sparse"),
        (torch.ones(2, dtype=torch.int64), "w would be of torch.int64"),
        (torch.full((2,), 1e6), "w has values that torch.float16 cannot hold"),
    ],
)
def test_tensors_that_no_checkpoint_has(tmp_path: Path, value: torch.Tensor, message: str) -> None:
    dtype = torch.float16 if value.is_floating_point() else None
    with pytest.raises(ValueError, match=message):
        files.save({"w": value}, {}, tmp_path / "x.safetensors", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    """A GHN that has them may be saved, to be looked at."""
    value = torch.tensor([1.0, float("inf"), float("nan")])
    files.save({"w": value}, {}, tmp_path / "x.safetensors", dtype=torch.float16)
    _, state = files.load(tmp_path / "x.safetensors")
    assert torch.equal(state["w"][:2], value[:2].half())
    assert state["w"][2].isnan()
    assert files.load_metadata(tmp_path / "x.safetensors") == {}


def test_ghns_of_all_kinds_are_read() -> None:
    configs = [make().config for make in MAKERS.values()]
    assert {config.decoder for config in configs} == set(DECODERS)
    assert {config.hypernet for config in configs} == set(HYPERNETS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    ghn, path = small_ghn2(), tmp_path / "x.safetensors"
    save(ghn, path, dtype=dtype)
    assert all(value.dtype == dtype for value in load_file(path).values())
    _, state = load(path)
    for name, value in ghn.state_dict().items():
        assert torch.equal(state[name], value.to(dtype).float()), name


def test_half_precision_must_hold_the_values(tmp_path: Path) -> None:
    ghn = small_ghn2()
    with torch.no_grad():
        ghn.ln.bias.fill_(1e6)
    with pytest.raises(ValueError, match=r"ln\.bias has values that torch\.float16 cannot hold"):
        save(ghn, tmp_path / "x.safetensors", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    ghn = small_ghn2()
    save(ghn, path)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        save(small_ghn2(), path)
    assert list(tmp_path.iterdir()) == [path]
    assert_same(path, ghn)


FULL_DISK = """
import resource, signal, sys
from ghn_fast.checkpoint import save
from ghn_fast.ghn import ghn2
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save(ghn2(hid=8, max_shape=(8, 8, 3, 3)), sys.argv[1])
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    """Files cannot grow beyond 20 kB in the process."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "x.safetensors")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "no checkpoint could be written" in done.stdout
    assert "File too large" in done.stdout
    assert not list(tmp_path.iterdir())


def test_types_that_could_not_be_loaded_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"would be of torch\.int32, which checkpoints"):
        save(small_ghn2(), tmp_path / "x.safetensors", dtype=torch.int32)


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    ghn = small_ghn2()
    save(ghn, path)
    _, state = load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(state["ln.weight"], ghn.ln.weight)


def test_a_ghn_is_loaded_where_it_is_asked_for(tmp_path: Path) -> None:
    save(small_ghn2(), tmp_path / "x.safetensors")
    loaded = load_ghn(tmp_path / "x.safetensors", device="meta")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"meta"}


def rewrite(path: Path, tensors: dict[str, torch.Tensor], **header: str) -> None:
    config = json.dumps(small_ghn2().config.to_dict())
    defaults = {"format": "pt", "ghn_fast.format": "1", "ghn_fast.config": config}
    save_file(tensors, path, metadata={**defaults, **header})


def small_state() -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in small_ghn2().state_dict().items()}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"ghn_fast.format": "2"}, "format version 2.*please upgrade"),
        ({"ghn_fast.format": "soon"}, "format version soon"),
        ({"ghn_fast.config": "{"}, "no JSON"),
        ({"ghn_fast.config": "[1]"}, "configuration is a list"),
        (
            {"ghn_fast.config": '{"width": 3}'},
            "x.safetensors: unknown settings of a GHN: width; a newer version",
        ),
        ({"ghn_fast.config": '{"hid": "8"}'}, "configuration's hid is '8'"),
        ({"ghn_fast.config": '{"hid": [8]}'}, r"configuration's hid is \(8\)"),
        ({"ghn_fast.config": '{"hid": 7}'}, "hid must be a positive multiple of 4"),
        ({"ghn_fast.config": '{"max_shape": [1, "a", 3, 3]}'}, r"max_shape is \(1, 'a', 3, 3\)"),
        ({"ghn_fast.config": '{"max_shape": [1, 1.5, 3, 3]}'}, r"max_shape is \(1, 1.5, 3, 3\)"),
        ({"ghn_fast.config": '{"mean": [0.5, "a"]}'}, r"mean is \(0.5, 'a'\)"),
        ({"ghn_fast.config": '{"mean": [0.5, 0.5, 0.5]}'}, "must be given together"),
        ({"ghn_fast.config": '{"image_size": 30000}'}, "image_size must be from 0 to 1024, not 3"),
    ],
)
def test_bad_header(tmp_path: Path, header: dict[str, str], message: str) -> None:
    path = tmp_path / "x.safetensors"
    rewrite(path, small_state(), **header)
    with pytest.raises(CheckpointError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hid": 4_000_000_000}, "says hid 4000000000, the tensors 8"),
        ({"max_shape": [8, 8, 10**9, 10**9]}, r"says max_shape \(8, 8, 1000000000.*, the tensors"),
        ({"num_classes": 1000}, "says num_classes 1000, the tensors 10"),
        ({"ve": False}, "says ve False, the tensors True"),
        ({"hypernet": "mlp"}, "says hypernet 'mlp', the tensors 'gatedgnn'"),
        ({"hypernet": "graphormer", "layers": 10**9}, "says.* layers 1000000000, the tensors None"),
    ],
)
def test_configuration_against_the_tensors(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.safetensors"
    config = {**small_ghn2().config.to_dict(), **values}
    rewrite(path, small_state(), **{"ghn_fast.config": json.dumps(config)})
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_tensors_against_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    state = small_state()
    rewrite(path, {**state, "ln.weight": torch.ones(9)})
    with pytest.raises(CheckpointError, match=r"ln\.weight has shape \(9,\).* asks for \(8,\)"):
        load(path)
    first = state["decoder.conv.0.weight"]
    rewrite(path, {**state, "decoder.conv.0.weight": first[:, :, 0, 0].contiguous()})
    assert_same(path, load_ghn(path))  # a linear layer in one public code
    rewrite(path, {**state, "decoder.conv.0.weight": torch.ones(*first.shape[:2], 2, 2)})
    with pytest.raises(CheckpointError, match=r"decoder\.conv\.0\.weight has shape .* 2, 2\)"):
        load(path)
    rewrite(path, {**state, "ln.weight": torch.full((8,), torch.nan)})
    with pytest.raises(CheckpointError, match=r"ln\.weight"):
        load(path)
    rewrite(path, {**state, "more": torch.ones(9)})
    with pytest.raises(CheckpointError, match="unknown more"):
        load(path)
    rewrite(path, {**state, "ln.weight": torch.ones(8, dtype=torch.int64)})
    with pytest.raises(CheckpointError, match=r"ln\.weight is of torch\.int64, not of a float"):
        load(path)
    del state["gnn.mlp.fc.2.bias"]
    rewrite(path, state)
    with pytest.raises(CheckpointError, match=r"missing gnn\.mlp\.fc\.2\.bias"):
        load(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(small_ghn2(), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EOFError):
        files._safetensors_state(path)


@pytest.mark.parametrize("keep", [0, 5, 100, 3000, -1])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.safetensors"
    save(small_ghn2(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"truncated|is empty|begins with"):
        load(path)


# ---------------------------------------------------------------- the published formats


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["ghn1", "ghn2", "mlp", "mlp decoder"])
def test_ppuda(tmp_path: Path, name: str, zipped: bool) -> None:
    ghn, path = MAKERS[name](), tmp_path / "x.pt"
    torch.save(ppuda_checkpoint(ghn), path, _use_new_zipfile_serialization=zipped)
    assert_same(path, ghn)


def test_ppuda_defaults(tmp_path: Path) -> None:
    """Fields that are missing have the value that ppuda's constructor gives them."""
    ghn, path = ghn1(**SMALL), tmp_path / "x.pt"  # type: ignore[arg-type]
    content = ppuda_checkpoint(ghn)
    content["config"] = {"max_shape": (8, 8, 3, 3), "num_classes": 10, "hid": 8}
    torch.save(content, path)
    assert_same(path, ghn)


@pytest.mark.parametrize("compress", [0, 3])
@pytest.mark.parametrize("name", ["ghn2", "ghn3", "wide", "mlp decoder"])
def test_joblib_without_configuration(tmp_path: Path, name: str, compress: int) -> None:
    joblib = pytest.importorskip("joblib")
    ghn, path = MAKERS[name](), tmp_path / "x.pt"
    joblib.dump(ghn.state_dict(), path, compress=compress)
    assert_same(path, ghn)


def test_linear_layers_in_place_of_convolutions(tmp_path: Path) -> None:
    """ghn3 publishes its GHN-2 with linear layers in the decoder."""
    ghn, path = small_ghn2(), tmp_path / "x.pt"
    state = {n: v.squeeze() if n.startswith("decoder.") else v for n, v in ghn.state_dict().items()}
    torch.save({"state_dict": state, "config": {**ghn.config.to_dict(), "is_ghn2": True}}, path)
    assert_same(path, ghn)


def test_ghn3_trainer(tmp_path: Path) -> None:
    """Its own names of the embeddings, fields of its own, the command line as a Namespace."""
    ghn, path = small_ghn3(), tmp_path / "x.pt"
    state = collections.OrderedDict(
        (f"gnn.0.{name}" if name.startswith(("centrality", "input_dist")) else name, value)
        for name, value in ghn.state_dict().items()
    )
    config = {**ghn.config.to_dict(), "hypernet": "gatedgnn", "is_ghn2": False}
    args = argparse.Namespace(lr=0.1, name="x", opt=None)
    torch.save({"state_dict": state, "config": config, "args": args, "step": 1}, path)
    assert_same(path, ghn)


@pytest.mark.parametrize(
    "name", ["ghn1_cifar10", "ghn2_cifar10", "ghn2_imagenet", "mlp_cifar10", "ghn3_tiny_imagenet"]
)
def test_conformance_checkpoints(shared: Path, name: str) -> None:
    path = shared / "conformance" / "checkpoints" / f"{name}_random.pt"
    config, state = load(path)
    assert config.num_classes == (10 if "cifar10" in name else 1000)
    make_ghn(config).load_state_dict(state)
    if name.startswith("ghn3"):
        assert config == GHN3Config(layers=3, heads=8, hid=64)
        assert isinstance(load_ghn(path), GHN3)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [3, 300, 5000, -1])
def test_truncated_torch(tmp_path: Path, zipped: bool, keep: int) -> None:
    path = tmp_path / "x.pt"
    torch.save(ppuda_checkpoint(small_ghn2()), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"truncated|begins with"):
        load(path)


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["config", "epoch", "state_dict", "whole"])
def test_malicious_torch(tmp_path: Path, place: str, zipped: bool) -> None:
    path, attack = tmp_path / "x.pt", Attack(tmp_path / "victim")
    content: Any = ppuda_checkpoint(small_ghn2())
    if place == "state_dict":
        content["state_dict"]["ln.weight"] = attack
    else:
        content[place] = attack
    torch.save(attack if place == "whole" else content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"asks for (posix|nt)\.system"):
        load(path)
    assert not (tmp_path / "victim").exists()


def test_whole_module(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(small_ghn2(), path)
    with pytest.raises(CheckpointError, match=r"asks for ghn_fast\.ghn\.model\.GHN"):
        load(path)


# ---------------------------------------------------------------- other files


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_another_kind(tmp_path: Path, ending: str) -> None:
    state = torchvision.models.resnet18().state_dict()
    path = tmp_path / f"resnet.{ending}"
    if ending == "pt":
        torch.save(state, path)
    else:
        save_file({**state, "mask": torch.ones(2, dtype=torch.bool)}, path)
    with pytest.raises(CheckpointError, match=r"not a GHN's checkpoint: its tensors are conv1\.w"):
        load(path)


def test_not_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save([torch.ones(2)], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        load(path)
    torch.save({"embed.weight": 1}, path)
    with pytest.raises(CheckpointError, match=r"'embed\.weight' is not a tensor"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "begins with b'<!DOCTYP'"),
        (b"", "is empty"),
    ],
)
def test_no_checkpoint_at_all(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_missing(tmp_path: Path) -> None:
    save(small_ghn2(), tmp_path / "best.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint .*last\.safetensors.*has best\.safe"):
        load(tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match="there is no folder"):
        load(tmp_path / "runs" / "last.safetensors")


def test_a_larger_tensor_than_its_data(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    state = small_state()
    state["decoder.fc.0.weight"] = torch.ones(1, 8).expand(32 * 10**6, 8)
    joblib.dump(state, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=r"a tensor of 256000000 values is larger than its data"
    ):
        load(tmp_path / "x.pt")
