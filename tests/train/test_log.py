from __future__ import annotations

import re
from pathlib import Path

import pytest

from ghn_fast.train import read_log


@pytest.mark.parametrize("damaged", ['{"step": 1, "lo', "1"])
def test_a_damaged_line_is_named(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 0}}\n{damaged}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2 is not a line of a log")):
        read_log(path)


def test_an_incomplete_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n{"st')
    assert read_log(path) == [{"step": 0}]
