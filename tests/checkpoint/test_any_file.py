"""What holds for any file, name and configuration, and not only for those that somebody thought of.

With ``--hypothesis-profile=campaign`` each is tried 1,000 times.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ghn_fast.checkpoint import CheckpointError, from_pretrained, load
from ghn_fast.checkpoint.tensor_pickle import load_tensor_pickle
from ghn_fast.train.config import ConfigError, TrainConfig
from tests.bad_files import CONFIG, archive_of, persistent, safetensors, view
from tests.campaign import Judge, Reader, campaign

NUMBERS = st.sampled_from([b"K\x00", b"K\x01", b"K\x04", b"\x89", b"N", b"G" + bytes(8)]) | (
    st.integers(-(2**70), 2**70).map(lambda n: b"\x8a\x09" + n.to_bytes(9, "little", signed=True))
)
TEXTS = st.text(max_size=5).map(
    lambda text: b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()
)
SHAPES = st.sampled_from([b"K\x04\x85", b"K\x02K\x02\x86", b")", b"K\x02\x85", b"N\x85"])
FRAGMENTS = st.one_of(
    NUMBERS,
    TEXTS,
    NUMBERS.map(persistent),
    st.builds(view, NUMBERS.map(persistent), SHAPES, SHAPES),
    st.sampled_from([b"}", b"]", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"s", b"u", b"a"]),
    st.sampled_from([b"e", b"R", b"b", b"Q", b"q\x00", b"h\x00", b"\x81", b"\x94", b"0", b"2"]),
    st.sampled_from([b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"cos\nsystem\n"]),
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
JSON = st.recursive(
    PLAIN, lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=5), parts)
)


def refused_in_one_line(error: ValueError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 700


@given(st.lists(FRAGMENTS, max_size=30), st.booleans())
def test_pickles_of_any_instructions(fragments: list[bytes], zipped: bool) -> None:
    body = b"".join(fragments)
    content = archive_of(body) if zipped else b"\x80\x02" + body + b"."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(content)
        try:
            load_tensor_pickle(path)
        except CheckpointError as error:
            refused_in_one_line(error)


@given(st.dictionaries(st.sampled_from(sorted(CONFIG.to_dict())) | st.text(max_size=5), JSON))
def test_any_configuration_of_a_ghn(changes: dict[str, Any]) -> None:
    config = {**CONFIG.to_dict(), **changes}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(safetensors(json.dumps(config)))
        try:
            found, _ = load(path)
        except CheckpointError as error:
            refused_in_one_line(error)
        else:
            assert found.hid == CONFIG.hid


@given(st.dictionaries(st.sampled_from(sorted(TrainConfig().to_dict())), JSON))
def test_any_settings_of_a_run(values: dict[str, Any]) -> None:
    try:
        assert TrainConfig.from_dict(json.loads(json.dumps(values))) is not None
    except ConfigError as error:
        refused_in_one_line(error)


@given(
    st.text()
    | st.from_regex(r"[a-z~./:\\-]{1,30}", fullmatch=True)
    | st.from_regex(r"[a-z.]{1,5}/[a-z.]{1,5}:[a-z./]{1,9}", fullmatch=True)
)
def test_any_name_of_a_ghn(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            from_pretrained(name, cache_dir=folder, local_files_only=True)
        except CheckpointError as error:
            refused_in_one_line(error)


def test_the_campaign_tries_files(tmp_path: Path) -> None:
    (counts,) = campaign(1.0, names=["safetensors"]).values()
    assert counts["refused"] > 0
    assert counts["finding"] == 0


def test_the_campaign_finds_what_is_wrong(tmp_path: Path) -> None:
    def read(path: Path) -> list[torch.Tensor]:
        return [torch.tensor(list(path.read_bytes()))]

    judge = Judge(Reader(lambda: b"good", read, has_checksum=True), tmp_path)
    judge(b"good")
    with pytest.raises(AssertionError, match="it was read wrongly"):
        judge(b"goof")
    assert judge.counts == {"read right": 1}
