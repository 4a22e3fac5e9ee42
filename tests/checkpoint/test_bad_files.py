from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

from ghn_fast.checkpoint import CheckpointError, from_pretrained, load_ghn
from tests.bad_files import CHECKPOINTS, CONFIG, WEIGHT, infinite, state, write


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.filterwarnings("ignore:.*prototype|.*beta")
def test_is_refused_in_a_line_that_names_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(name, tmp_path)
    start = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        load_ghn(path)
    message = str(caught.value)
    assert re.search(CHECKPOINTS[name][1], message)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 700
    assert time.perf_counter() - start < 20
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name",
    [
        "~nouser/x",
        "x" * 5000,
        "x" * 5000 + ".pt",
        "owner/name:../../x",
        "owner/../x",
        "a\0b",
        "a\nb",
    ],
)
def test_names_that_no_ghn_has(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        from_pretrained(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


def test_values_that_are_not_finite_can_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(infinite(float("nan")))
    ghn = load_ghn(tmp_path / "x", check_finite=False)
    assert ghn.state_dict()[WEIGHT].isnan().sum() == 1
    assert from_pretrained(tmp_path / "x", check_finite=False).config == CONFIG


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_that_wrappers_add_are_taken_off(tmp_path: Path, prefix: str) -> None:
    own = state()
    wrapped = {prefix + name: value for name, value in own.items()}
    torch.save({"state_dict": wrapped, "config": CONFIG.to_dict()}, tmp_path / "x")
    found = load_ghn(tmp_path / "x").state_dict()
    assert all(torch.equal(found[name], value) for name, value in own.items())


def test_a_compiled_part_of_a_ghn(tmp_path: Path) -> None:
    own = state()
    wrapped = {name.replace("gnn.", "gnn._orig_mod.", 1): value for name, value in own.items()}
    torch.save(wrapped, tmp_path / "x")
    assert torch.equal(load_ghn(tmp_path / "x").state_dict()[WEIGHT], own[WEIGHT])
