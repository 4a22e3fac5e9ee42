from __future__ import annotations

import re
from pathlib import Path

import pytest

from ghn_fast.train import read_log
from ghn_fast.train.log import RunLog


@pytest.mark.parametrize("damaged", ['{"step": 1, "lo', "1", '{"loss": 1}', "[" * 100_000])
def test_a_damaged_line_is_named(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 0}}\n{damaged}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2 is not a line of a log")):
        read_log(path)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a log")):
        read_log(path)


def test_an_incomplete_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n{"st')
    assert read_log(path) == [{"step": 0}]


class FullDisk:
    """TensorBoard's writer, whose thread passes on its error later."""

    def add_scalar(self, *_: object) -> None:
        raise OSError(28, "No space left on device")

    close = add_scalar


def test_events_on_a_full_disk_do_not_end_the_run(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        log._writer = FullDisk()
        with pytest.warns(UserWarning, match="step 1: no more events for TensorBoard: .*No space"):
            log.write("train", 1, {"loss": 2.0})
        log.write("train", 2, {"loss": 1.0})
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2]


def test_the_last_events_on_a_full_disk_do_not_either(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the last events are not in"), RunLog(tmp_path, 0) as log:
        log._writer = FullDisk()
