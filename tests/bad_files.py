"""Checkpoints that must be refused, each in one line: small files that a user or an enemy may have.

The tests read them all, and ``python -m tests.campaign --table`` makes the table of
docs/reliability.md of them.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ghn_fast.ghn import GHN3Config, GHNConfig, LoGAHConfig, make_ghn

Change = Callable[[str, bytes], tuple[int, bytes]]
CONFIG = GHNConfig(hid=8, max_shape=(8, 8, 3, 3), num_classes=4)
WEIGHT = "decoder.fc.0.weight"


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: value.clone() for name, value in make_ghn(CONFIG).state_dict().items()}


def saved(
    changes: dict[str, Any] | None = None, config: dict[Any, Any] | None = None, **options: Any
) -> bytes:
    """A file of torch.save, of a state dict with changes."""
    config = CONFIG.to_dict() if config is None else config
    content = {"state_dict": {**state(), **(changes or {})}, "config": config}
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def zipped(change: Change) -> bytes:
    """A file of torch.save whose entries have gone through ``change``: compression and content."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            compression, content = change(name, old.read(name))
            new.writestr(name, content, compression)
    return file.getvalue()


def of_records(change: Callable[[bytes], bytes]) -> bytes:
    """With the records of storages changed, and sizes and checksums as they then are."""

    def changed(name: str, content: bytes) -> tuple[int, bytes]:
        is_data = "/data/" in name and len(content) > 64
        return zipfile.ZIP_STORED, change(content) if is_data else content

    return zipped(changed)


def flipped() -> bytes:
    content = bytearray(saved())
    with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 1
    return bytes(content)


def twice() -> bytes:
    file = io.BytesIO(saved())
    with zipfile.ZipFile(file, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
        archive.writestr(name, archive.read(name))
    return file.getvalue()


def safetensors(config: str | None = None, changes: dict[str, Tensor] | None = None) -> bytes:
    config = json.dumps(CONFIG.to_dict()) if config is None else config
    header = {"format": "pt", "ghn_fast.format": "1", "ghn_fast.config": config}
    return save({**state(), **(changes or {})}, header)


def raw_safetensors(header: str) -> bytes:
    content = header.encode()
    return struct.pack("<Q", len(content)) + content


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def laughing(steps: int = 30) -> bytes:
    """A tuple of ten tuples of ten tuples and so on."""
    rows = (b"(" + (b"h" + bytes([n])) * 10 + b"tq" + bytes([n + 1]) for n in range(steps))
    return b"()q\x00" + b"".join(rows) + b"t"


def with_config(body: bytes) -> bytes:
    """A state dict without tensors, and a configuration."""
    return pickled(b"}(X\x0a\x00\x00\x00state_dict}X\x06\x00\x00\x00config" + body + b"u")


def view(storage: bytes, size: bytes, stride: bytes) -> bytes:
    arguments = b"(" + storage + b"K\x00" + size + stride + b"\x89Nt"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def persistent(numel: bytes) -> bytes:
    return (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + numel
        + b"tQ"
    )


def archive_of(body: bytes, record: bytes = bytes(16)) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickled(body))
        archive.writestr("a/data/0", record)
    return file.getvalue()


def in_a_literal(numel: bytes) -> bytes:
    """A tensor as joblib dumps it, whose storage says that it has so many values."""
    content = (
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
        + pickled(b"M\xe9\x03")
        + pickled(b"}X\x0d\x00\x00\x00little_endian\x88s")
        + pickled(persistent(numel))
        + pickled(b"]X\x01\x00\x00\x000a")
        + (int.from_bytes(numel[2:], "little")).to_bytes(8, "little")
    )
    literal = b"B" + struct.pack("<I", len(content)) + content
    storage = b"ctorch.storage\n_load_from_bytes\n" + literal + b"\x85R"
    return pickled(b"}X\x01\x00\x00\x00a" + view(storage, b"K\x01\x85", b"K\x01\x85") + b"s")


def tensors_of_one_storage(count: int) -> bytes:
    whole = view(persistent(b"K\x04"), b"K\x04\x85", b"K\x01\x85")
    names = (b"X\x03\x00\x00\x00" + b"%03d" % n + whole for n in range(count))
    return archive_of(b"}(" + b"".join(names) + b"u")


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch it-ran",)


def damaged_gzip() -> bytes:
    content = bytearray(gzip.compress(pickle.dumps(state(), protocol=4), mtime=0))
    content[-8] ^= 1
    return bytes(content)


def low_rank() -> bytes:
    """Of LoGAH's configuration not everything leaves a trace in the shapes."""
    config = LoGAHConfig(hid=16, layers=1, heads=2, lora_r=4, max_ck_lora=8)
    values = {**config.to_dict(), "max_shape": (10**9,) * 4}
    file = io.BytesIO()
    torch.save({"state_dict": make_ghn(config).state_dict(), "config": values}, file)
    return file.getvalue()


def of_layers(count: int) -> bytes:
    """A GHN-3 of so many layers, each with one of its parameters."""
    config = GHN3Config(hid=16, layers=1, heads=2, max_shape=(8, 8, 3, 3), num_classes=4)
    layers = {f"gnn.{number}.ln1.weight": torch.ones(1) for number in range(count)}
    file = io.BytesIO()
    torch.save({**layers, **make_ghn(config).state_dict()}, file)
    return file.getvalue()


def infinite(value: float, dtype: torch.dtype = torch.float32) -> bytes:
    weight = state()[WEIGHT].to(dtype)
    weight.view(-1)[3] = value
    return saved({WEIGHT: weight})


NUMEL = b"\x8a\x09" + (2**60).to_bytes(9, "little")
TERABYTE = b"\x8a\x06" + (2**40).to_bytes(6, "little")
ENDLESS = 2_100_000

CHECKPOINTS: dict[str, tuple[Callable[[], bytes], str]] = {
    # What transport does to files.
    "nothing": (lambda: b"", "it is empty"),
    "a web page": (lambda: b"<!DOCTYPE html>", "it begins with b'<!DOCTYP'"),
    "a pointer of Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "the first half of a zip": (lambda: saved()[:20_000], "truncated"),
    "the first half of a legacy file": (
        lambda: saved(_use_new_zipfile_serialization=False)[:20_000],
        "truncated",
    ),
    "a legacy file and more": (
        lambda: saved(_use_new_zipfile_serialization=False) + b"\0",
        "behind its end",
    ),
    "a flipped bit in a zip": (flipped, "Bad CRC-32"),
    "a flipped bit of gzip's checksum": (damaged_gzip, "incorrect data check"),
    "compressed entries": (
        lambda: zipped(lambda name, content: (zipfile.ZIP_DEFLATED, content)),
        "is compressed or encrypted",
    ),
    "records that are too short": (lambda: of_records(lambda r: r[:8]), "bytes, its record 8"),
    "records that are too long": (lambda: of_records(lambda r: r + r), "bytes, its record"),
    "an entry twice": (twice, "two entries of one name"),
    "another zip archive": (
        lambda: zipped(lambda name, content: (0, b"")).replace(b"data.pkl", b"data.txt"),
        "not one of torch.save",
    ),
    # What is in them is no GHN's.
    "a list": (lambda: archive_of(b"]"), "it holds a list"),
    "a parameter under two names": (
        lambda: saved({f"module.{WEIGHT}": state()[WEIGHT]}),
        "a parameter under two names",
    ),
    "a number as the name of a tensor": (
        lambda: saved({1: torch.ones(1)}),  # type: ignore[dict-item]
        "1 is not a tensor of a state dict",
    ),
    "an integer weight": (lambda: saved({WEIGHT: state()[WEIGHT].int()}), "not of a floating"),
    "an integer weight in safetensors": (
        lambda: safetensors(changes={WEIGHT: state()[WEIGHT].int()}),
        "decoder.fc.0.weight is of torch.int32, not of a floating type",
    ),
    "NaN": (lambda: infinite(float("nan")), "not finite"),
    "an infinite value": (lambda: infinite(float("-inf")), "not finite"),
    "a value beyond float32": (lambda: infinite(1e300, torch.float64), "not finite"),
    "a tensor without memory": (
        lambda: saved({WEIGHT: state()[WEIGHT].to("meta")}),
        "_rebuild_meta_tensor_no_storage",
    ),
    "a sparse tensor": (
        lambda: saved({WEIGHT: torch.eye(3).to_sparse()}),
        "_rebuild_sparse_tensor",
    ),
    "a CSR tensor": (lambda: saved({WEIGHT: torch.eye(3).to_sparse_csr()}), "_rebuild_sparse"),
    "a nested tensor": (
        lambda: saved({WEIGHT: torch.nested.nested_tensor([torch.ones(2)])}),
        "_rebuild_nested_tensor",
    ),
    "a configuration that is a list": (
        lambda: safetensors(config='["hid"]'),
        "configuration is a list",
    ),
    "a configuration with a number as a name": (
        lambda: saved(config={**CONFIG.to_dict(), 1: 2}),
        "configuration is a dict, not a dictionary of names",
    ),
    "a configuration that is half there": (lambda: safetensors(config='{"hid"'), "is no JSON"),
    "a size of 1e30": (
        lambda: safetensors(config=json.dumps({"hid": 10**30})),
        "hid a number of 100 bits",
    ),
    "a size of 5,000 digits": (
        lambda: safetensors(config='{"hid": %s}' % ("9" * 5000)),
        "is no JSON",
    ),
    "a size that is a float": (lambda: safetensors(config='{"hid": 8.0}'), "hid is 8.0"),
    "a size that is a bool": (lambda: safetensors(config='{"hid": true}'), "hid is True"),
    "a size that leaves no trace": (low_rank, "larger max_shape or num_classes than any GHN"),
    "images of 30,000 pixels": (
        lambda: safetensors(config='{"image_size": 30000}'),
        "image_size must be from 0 to 1024, not 30000",
    ),
    "means of five channels": (
        lambda: safetensors(config='{"mean": [0, 0, 0, 0, 0], "std": [1, 1, 1, 1, 1]}'),
        "for each of three channels",
    ),
    "a deviation that divides by nothing": (
        lambda: safetensors(config='{"mean": [0, 0, 0], "std": [1e-320, 1, 1]}'),
        "std must be a number from",
    ),
    "1,001 layers": (lambda: of_layers(1001), "it has 1001 layers"),
    "an unknown setting of 9,000 letters": (
        lambda: safetensors(config='{"%s": 1}' % ("a" * 9000)),
        "unknown settings of a GHN: a+ ... a+; a newer version of ghn_fast",
    ),
    "a GHN of a kind that is not known yet": (
        lambda: safetensors(config='{"hypernet": "hyena"}'),
        "hypernet must be one of .*, not 'hyena'; a newer version of ghn_fast",
    ),
    # What would run, crash, hang or fill the memory.
    "a call of os.system": (lambda: pickle.dumps(Attack(), protocol=2), "asks for posix.system"),
    "a call of os.system in a zip": (lambda: saved({"x": Attack()}), "asks for posix.system"),
    "a key nested 150,000 deep": (lambda: pickled(b"})" + b"\x85" * 150_000 + b"Ns"), "as a key"),
    "a key nested deep, in a zip": (
        lambda: archive_of(b"})" + b"\x85" * 150_000 + b"Ns"),
        "it has a tuple as a key",
    ),
    "a key whose hash never ends": (lambda: pickled(b"}" + laughing() + b"Ns"), "as a key"),
    "a number as key that collides": (
        lambda: pickled(b"}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"Ns"),
        "it has 2305843009213693951 as a key",
    ),
    "a configuration nested deep": (
        lambda: with_config(b")" + b"\x85" * 150_000),
        "nested too deeply",
    ),
    "a configuration that never ends": (lambda: with_config(laughing()), "too many values"),
    "a configuration of 200,000 brackets": (
        lambda: safetensors(config="[" * 200_000),
        "longer than that of any GHN",
    ),
    "a configuration of 9,000 brackets": (
        lambda: safetensors(config="[" * 9_000),
        "RecursionError|is no JSON",
    ),
    "a header of 200,000 brackets": (
        lambda: raw_safetensors('{"a":' + "[" * 200_000),
        "truncated or damaged",
    ),
    "a header of 5 MB": (lambda: raw_safetensors("{" + " " * 5_000_000 + "}"), "it begins with b'"),
    "instructions without end": (lambda: pickled(b"N" * ENDLESS), "more instructions"),
    "a storage of 2^60 values": (
        lambda: archive_of(b"}X\x01\x00\x00\x00a" + persistent(NUMEL) + b"s"),
        "has 4611686018427387904 bytes, its record 16",
    ),
    "a storage of 2^40 values, compressed": (
        lambda: zlib.compress(in_a_literal(TERABYTE)),
        "ends 43[0-9]* bytes early",
    ),
    "a tensor of 32 GB over 16 bytes": (
        lambda: archive_of(
            b"}X\x01\x00\x00\x00a"
            + view(persistent(b"K\x04"), b"\x8a\x05\0\0\0\0\x02\x85", b"K\x00\x85")
            + b"s"
        ),
        "a tensor of 8589934592 values is larger than its data",
    ),
    "a tensor beyond its storage": (
        lambda: archive_of(
            b"}X\x01\x00\x00\x00a" + view(persistent(b"K\x04"), b"K\x02\x85", b"K\x04\x85") + b"s"
        ),
        "out of the bounds of its data",
    ),
    "100 tensors of one storage": (lambda: tensors_of_one_storage(100), "much larger than its"),
    "a shape of 2^40 x 0": (
        lambda: safetensors(changes={"embed.weight": torch.empty(2**40, 0)}),
        "embed.weight has no values",
    ),
    "a header that says 2^40 values": (
        lambda: (
            raw_safetensors('{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,16]}}')
            + bytes(16)
        ),
        "truncated or damaged",
    ),
    "a name of a megabyte": (lambda: saved({"a" * 2**20: torch.ones(1)}), "unknown"),
    "a name that writes to the terminal": (
        lambda: archive_of(b"}X\x06\x00\x00\x00\x1b[31m\nNs"),
        r"\\x1b",
    ),
}


def write(name: str, folder: Path) -> Path:
    """Writes a bad checkpoint."""
    path = folder / "bad"
    path.write_bytes(CHECKPOINTS[name][0]())
    return path
