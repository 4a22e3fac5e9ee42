from __future__ import annotations

import re
from pathlib import Path

import pytest

from ghn_fast.data import DataError, load_images
from tests.bad_data import DATA


@pytest.mark.parametrize("name", DATA)
def test_is_refused_in_a_line_that_names_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, expected = DATA[name]
    write(tmp_path)
    with pytest.raises(DataError) as caught:
        _ = [load_images(tmp_path, split) for split in ("train", "val", "test")]
    message = str(caught.value)
    assert re.search(expected, message)
    assert message.startswith(str(tmp_path))
    assert message.isprintable()
    assert len(message) < 700
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("source", ["~nouser/x", "x" * 5000, "a\0b", "a\nb", "a/b/c"])
def test_names_that_no_data_set_has(source: str) -> None:
    with pytest.raises(DataError) as caught:
        load_images(source)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("source", ["~nouser/x", "x" * 5000, "a\0b"])
def test_names_that_nothing_can_be_downloaded_to(source: str) -> None:
    with pytest.raises(DataError):
        load_images(source, download=True)
