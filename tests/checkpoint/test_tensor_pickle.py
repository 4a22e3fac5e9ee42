from __future__ import annotations

import collections
import gzip
import os
import pathlib
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ghn_fast.checkpoint import CheckpointError
from ghn_fast.checkpoint.tensor_pickle import LEGACY_MAGIC, load_tensor_pickle
from tests.bad_files import archive_of, persistent, pickled, view, zipped

joblib = pytest.importorskip("joblib")


def write(content: Any, path: Path) -> Path:
    joblib.dump(content, path)
    return path


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_state_dict(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(300, 40), nn.BatchNorm1d(40)).state_dict()
    assert_equal(load_tensor_pickle(write(state, tmp_path / "x.pt")), state)


@pytest.mark.parametrize("compress", ["zlib", "gzip", "bz2", "xz", "lzma"])
def test_compressed(tmp_path: Path, compress: str) -> None:
    state = {"a": torch.randn(500, 300), "b": torch.arange(7)}
    path = tmp_path / "x"
    joblib.dump(state, path, compress=(compress, 3))
    assert_equal(load_tensor_pickle(path), state)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool],
)
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"a": (torch.randn(5, 3) * 9).to(dtype), "empty": torch.zeros(0, dtype=dtype)}
    assert_equal(load_tensor_pickle(write(state, tmp_path / "x")), state)


def test_views_parameters_and_shared_storage(tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    state = {"t": whole.t(), "part": whole[1:3, ::2], "p": nn.Parameter(whole)}
    state["as many dimensions as there can be"] = torch.ones((1,) * 64)
    found = load_tensor_pickle(write(state, tmp_path / "x"))
    assert_equal(found, {name: value.detach() for name, value in state.items()})


def test_plain_values(tmp_path: Path) -> None:
    content = {"a": [1, -5, 2**40, 0.5, None, True, False, "é", (), (1, 2, 3, 4), {}], 3: "x"}
    assert load_tensor_pickle(write(content, tmp_path / "x")) == content


def test_protocol_2_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(pickle.dumps({"a": collections.OrderedDict(b=1)}, protocol=2))
    assert load_tensor_pickle(path) == {"a": {"b": 1}}


@pytest.mark.parametrize("keep", [1, 100, 1000, -1])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = write({"a": torch.randn(30, 30)}, tmp_path / "x")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated"):
        load_tensor_pickle(path)


def test_truncated_compressed(tmp_path: Path) -> None:
    for compress in ("zlib", "gzip", "xz"):
        path = tmp_path / compress
        joblib.dump({"a": torch.randn(300, 30)}, path, compress=(compress, 3))
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            load_tensor_pickle(path)


def test_damaged_anywhere_is_an_error_or_a_value(tmp_path: Path) -> None:
    original = write({"a": torch.randn(4), "b": [1, (2, 3)]}, tmp_path / "x").read_bytes()
    path, errors = tmp_path / "damaged", 0
    generator = np.random.default_rng(0)
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            load_tensor_pickle(path)
        except CheckpointError:
            errors += 1
    assert errors > len(original) // 4


def test_view_beyond_the_storage(tmp_path: Path) -> None:
    content = pickle.dumps({"a": torch.zeros(4)}, protocol=4)
    path = tmp_path / "x"
    # The size (4,) of the tensor, after its offset 0, becomes (200,).
    before, after = b"K\x00K\x04\x85", b"K\x00K\xc8\x85"
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))
    with pytest.raises(CheckpointError, match="a tensor of 200 values is larger than its data"):
        load_tensor_pickle(path)


# ---------------------------------------------------------------- what must not run


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)


class Touches(Attack):
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Evaluates(Attack):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({self.path!r}, 'w').close()",)


class SetsState(Attack):
    def __setstate__(self, state: Any) -> None:
        Path(self.path).touch()


class OpensThroughPath(Attack):
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def nested(attack: Attack) -> Any:
    return {"state_dict": {"embed.weight": torch.ones(3), "x": [(1, {"y": attack})]}}


def in_ordered_dict(attack: Attack) -> Any:
    state = collections.OrderedDict(a=torch.ones(2))
    state._metadata = attack  # type: ignore[attr-defined]
    return state


def as_key(attack: Attack) -> Any:
    return {attack: 1}


def in_tensor_attribute(attack: Attack) -> Any:
    tensor = torch.ones(2)
    tensor.attack = attack  # type: ignore[attr-defined]
    return {"a": tensor}


@pytest.mark.parametrize("compress", [0, 3])
@pytest.mark.parametrize("place", [dict, nested, in_ordered_dict, as_key, in_tensor_attribute])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Touches, r"posix\.system|nt\.system"),
        (Evaluates, r"builtins\.eval"),
        (SetsState, r"copyreg\._reconstructor|tests\..*SetsState"),
        (OpensThroughPath, r"builtins\.getattr|pathlib"),
    ],
)
def test_refuses_by_name_and_runs_nothing(
    tmp_path: Path, kind: type[Attack], name: str, place: Callable[[Any], Any], compress: int
) -> None:
    victim = tmp_path / "victim"
    attack = kind(victim)
    path = tmp_path / "x.pt"
    joblib.dump({"a": attack} if place is dict else place(attack), path, compress=compress)
    if place is in_tensor_attribute:
        name += r"|torch\._tensor\._rebuild_from_type_v2"
    with pytest.raises(CheckpointError, match=name):
        load_tensor_pickle(path)
    assert not victim.exists()


def test_the_attack_would_have_worked(tmp_path: Path) -> None:
    path = write(nested(Evaluates(tmp_path / "victim")), tmp_path / "x.pt")
    joblib.load(path)
    assert (tmp_path / "victim").exists()


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (opcodes(b"cposix\nsystem\n", b"\x8c\x02id", b"\x85R"), "posix.system"),
        (opcodes(b"\x8c\x05posix", b"\x8c\x06system", b"\x93", b"\x8c\x02id\x85R"), "posix.system"),
        (opcodes(b"(\x8c\x02idiposix\nsystem\n"), "instruction b'i'"),
        (opcodes(b"(cposix\nsystem\n\x8c\x02ido"), "posix.system"),
        (opcodes(b"ctorch\nFloatStorage\n)\x81"), "it calls a dtype"),
        (opcodes(b"ctorch\nload\n"), "torch.load"),
        (opcodes(b"ctorch.storage\n_load_from_bytes\n\x8c\x02id\x85R"), "a tensor are 'id'"),
        (opcodes(b"\x82\x01"), r"instruction b'\\x82'"),
        (opcodes(b"\x8c\x02id)R"), "calls 'id'"),
        (opcodes(b"ctorch.storage\n_load_from_bytes\n]R"), "calls a function"),
        (opcodes(b"]NaK\x00Ns"), "adds to a list"),
        (opcodes(b"}Na"), "adds to a dict"),
        (opcodes(b"}(Ne"), "adds to a dict"),
        (opcodes(b"B\x20\x00\x00\x00" + bytes(32)), "bytes that are no tensor's data"),
        (opcodes(b"j\x05\x00\x00\x00"), "damaged"),
        (opcodes(b"u"), "damaged"),
        (opcodes(b"}\x94\x8c\x01ah\x00s"), "nested too deeply"),
        (opcodes(b"}(\x8c\x01au"), "damaged"),
    ],
)
def test_hand_written_pickles(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_tensor_pickle(path)


def test_attack_inside_of_a_storage(tmp_path: Path) -> None:
    """The bytes of a storage are a pickle again."""
    content = pickle.dumps({"a": torch.zeros(4)}, protocol=4)
    # A name of equal length, so that all sizes stay right.
    assert content.count(b"ctorch\nFloatStorage\n") == 1
    path = tmp_path / "x.pt"
    path.write_bytes(content.replace(b"ctorch\nFloatStorage\n", b"cposix\nsystem_______\n"))
    with pytest.raises(CheckpointError, match=r"posix\.system_______"):
        load_tensor_pickle(path)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"a": np.zeros(3)}, r"joblib\.numpy_pickle\.NumpyArrayWrapper"),
        ({"args": pathlib.PurePosixPath("a")}, r"pathlib\.(_local\.)?PurePosixPath"),
        (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
    ],
)
def test_refuses_other_objects(tmp_path: Path, content: Any, name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        load_tensor_pickle(write(content, tmp_path / "x.pt"))


def test_says_how_to_read_lz4(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x04\x22\x4d\x18" + bytes(20))
    with pytest.raises(CheckpointError, match="it is compressed with lz4"):
        load_tensor_pickle(path)


def test_gzip_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(CheckpointError, match="truncated"):
        load_tensor_pickle(path)


# ---------------------------------------------------------------- what does not fit together

FLOATS = b"ctorch\nFloatStorage\n"
FOUR = persistent(b"K\x04")
ONE, OF_FOUR = b"K\x01\x85", b"K\x04\x85"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (view(FOUR, b"\x8a\x01\xff\x85", ONE), "no natural number"),
        (view(FOUR, OF_FOUR, b"\x8a\x01\xff\x85"), "no natural number"),
        (view(FOUR, b"\x88\x85", ONE), "no natural number"),
        (view(FOUR, OF_FOUR, b"K\x01K\x01\x86"), "do not fit"),
        (view(FOUR, b"]", ONE), "do not fit"),
        (view(FOUR, b"(" + 65 * b"K\x01" + b"t", b"(" + 65 * b"K\x01" + b"t"), "do not fit"),
        (view(FOUR, OF_FOUR, b"K\x02\x85"), "out of the bounds"),
        (view(FOUR, b"K\x02\x85", b"K\x04\x85"), "out of the bounds"),
        (view(b"K\x07", OF_FOUR, ONE), "the data of a tensor are 7"),
        (b"ctorch._utils\n_rebuild_parameter\n(K\x07\x89NtR", "the data of a parameter are 7"),
        (FOUR.replace(b"storagec", b"stolagec"), "described in an unknown way"),
        (FOUR.replace(FLOATS, b"K\x07"), "described in an unknown way"),
        (persistent(b"K\x04K\x01"), "described in an unknown way"),
        (FOUR.replace(b"X\x01\x00\x00\x000", b"K\x00"), "a storage has 4 elements"),
        (persistent(b"\x8a\x01\xff"), "a storage has -1 elements"),
        (persistent(b"\x88"), "a storage has True elements"),
        (b"(" + FOUR + persistent(b"K\x03") + b"t", "described twice"),
        (b"]Nb", "it changes a list"),
        (FOUR, "it holds a _Storage"),
    ],
)
def test_tensors_that_are_none(tmp_path: Path, body: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(archive_of(body))
    with pytest.raises(CheckpointError, match=message):
        load_tensor_pickle(tmp_path / "x")


@pytest.mark.parametrize("empty", [torch.ones(4)[4:], torch.ones(3, 0)])
def test_an_empty_view_may_lie_at_the_end(tmp_path: Path, empty: Tensor) -> None:
    torch.save({"a": empty}, tmp_path / "x")
    assert load_tensor_pickle(tmp_path / "x")["a"].shape == empty.shape


def changed(name: str, content: bytes) -> Callable[[], bytes]:
    return lambda: zipped(lambda entry, old: (0, content if entry.endswith(name) else old))


def directory(offset: int, value: bytes) -> Callable[[], bytes]:
    """With other bytes for each entry in the archive's directory."""

    def make() -> bytes:
        content = bytearray(zipped(lambda entry, old: (0, old)))
        start = content.find(b"PK\x01\x02")
        while start >= 0:
            content[start + offset : start + offset + len(value)] = value
            start = content.find(b"PK\x01\x02", start + 4)
        return bytes(content)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (changed("/data.pkl", pickled(b"}") + b"."), "goes on behind its end"),
        (changed("/byteorder", b"big"), "another byte order"),
        (directory(8, b"\x01"), "compressed or encrypted"),
        (directory(20, b"\x07\x00\x00\x00"), "has two sizes"),
        (directory(20, 2 * b"\x00\x00\x00\x10"), "together larger than the file"),
    ],
)
def test_archives_that_are_none(tmp_path: Path, make: Callable[[], bytes], message: str) -> None:
    (tmp_path / "x").write_bytes(make())
    with pytest.raises(CheckpointError, match=message):
        load_tensor_pickle(tmp_path / "x")


def legacy(
    version: bytes = b"M\xe9\x03",
    system: bytes = b"}X\x0d\x00\x00\x00little_endian\x88s",
    keys: bytes = b"]X\x01\x00\x00\x000a",
    numel: int = 4,
) -> bytes:
    """A tensor of four values in PyTorch's format before zip."""
    pickles = (version, system, view(FOUR, OF_FOUR, ONE), keys)
    return LEGACY_MAGIC + b"".join(map(pickled, pickles)) + struct.pack("<q", numel) + bytes(16)


def in_literal(content: bytes) -> bytes:
    literal = b"B" + struct.pack("<I", len(content)) + content
    return pickled(view(b"ctorch.storage\n_load_from_bytes\n" + literal + b"\x85R", ONE, ONE))


STORAGE = legacy().replace(view(FOUR, OF_FOUR, ONE), FOUR)
WHOLE = in_literal(STORAGE)


def gzip_of(size: int) -> bytes:
    """Of ``WHOLE``, as long as wanted: the header has a name of a file."""
    content = gzip.compress(WHOLE, mtime=0)
    name = (size - len(content) - 1) * b"x" + b"\0"
    return content[:3] + b"\x08" + content[4:10] + name + content[10:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (legacy(version=b"M\xea\x03"), "not of a known version"),
        (legacy(system=b"]"), "not of a known version"),
        (legacy(system=b"C\x01a"), "it has bytes, which it does not need"),
        (legacy(keys=b"]}b"), "it changes a list"),
        (legacy(system=b"}X\x0d\x00\x00\x00little_endian\x89s"), "another byte order"),
        (legacy(keys=b"N"), "its list of storages is none"),
        (legacy(keys=b"]K\x00a"), "its list of storages is none"),
        (legacy(keys=b"]X\x01\x00\x00\x001a"), "disagree with its tensors"),
        (legacy(keys=b"]"), "disagree with its tensors"),
        (legacy(numel=3), "disagrees with its header"),
        (legacy()[:-1], "it ends 1 bytes early"),
        (pickled(view(FOUR, OF_FOUR, ONE)), "the data of a tensor are missing"),
        (in_literal(STORAGE + b"\0"), "longer or shorter than its header says"),
        (in_literal(b"\x80\x02"), "bytes that are no tensor's data"),
        (gzip.compress(WHOLE) + b"\0", "goes on behind its end"),
        (gzip.compress(WHOLE) + gzip.compress(b""), "goes on behind its end"),
        (zlib.compress(WHOLE + b"\0"), "goes on behind its end"),
        (gzip_of(1 << 16) + b"\0", "goes on behind its end"),  # read in pieces of this size
        (zlib.compress(WHOLE[: WHOLE.index(STORAGE) + len(STORAGE) - 8]), "it ends 8 bytes early"),
        (zlib.compress(b"\x80\x02X\xff\x00\x00\x00abc"), "it ends 252 bytes early"),
        (b"\x80\x02" + 1100 * b"c" + b"\nx\n.", "ends inside of a name"),
    ],
)
def test_older_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_tensor_pickle(tmp_path / "x")


@pytest.mark.parametrize("content", [legacy(), WHOLE, gzip.compress(WHOLE), gzip_of(1 << 16)])
def test_older_files_that_are_right(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert not load_tensor_pickle(tmp_path / "x").any()
