from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghn_fast._system.files import append_line, lock, replace, write_text, writing


def test_the_content_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half(aside: Path) -> None:
        aside.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace(path, write_half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    def write_for_the_owner_alone(aside: Path) -> None:
        aside.write_text("secret")
        aside.chmod(0o600)

    path, plain = tmp_path / "file", tmp_path / "plain"
    replace(path, write_for_the_owner_alone)
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


IN_ASCII = """
import locale, sys
from pathlib import Path
from ghn_fast._system.files import append_line, read_text, write_text
assert locale.getpreferredencoding(False) != "utf-8"
path = Path(sys.argv[1])
write_text(path, "a dot \\u25cf\\n")
append_line(path, "and \\u25cb")
assert read_text(path) == "a dot \\u25cf\\nand \\u25cb\\n"
"""


def test_text_is_in_utf8_whatever_the_system_writes(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", IN_ASCII, str(tmp_path / "file")]
    environment = {**os.environ, **plain}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_bytes() == "a dot \u25cf\nand \u25cb\n".encode()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from ghn_fast._system.files import append_line
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
append_line(Path(sys.argv[1]), "too long for the disk")
"""


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    """Files cannot grow beyond 10 bytes in the process."""
    path = tmp_path / "log"
    append_line(path, "first")
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "File too large" in done.stderr
    append_line(path, "last")
    assert path.read_text() == "first\nlast\n"


BEHIND_A_LIBRARY = """
import resource, signal, sys
from pathlib import Path
import torch
from ghn_fast._system.files import writing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    with writing(Path(sys.argv[1])) as file:
        torch.save({"a": torch.zeros(300_000)}, file)
except OSError as error:
    print(error)
"""


def test_a_failed_write_behind_a_library_is_a_failed_write(tmp_path: Path) -> None:
    """Files cannot grow beyond 200 kB in the process; PyTorch makes a RuntimeError of that."""
    command = [sys.executable, "-c", BEHIND_A_LIBRARY, str(tmp_path / "x")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[Errno 27] File too large", done.stderr


def test_errors_of_the_library_stay_its_own(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writing(tmp_path / "x"):
        raise KeyError("x")


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    with (tmp_path / "x").open("ab") as one, (tmp_path / "x").open("ab") as other:
        lock(one)
        with pytest.raises(BlockingIOError):
            lock(other)
    with (tmp_path / "x").open("ab") as later:
        lock(later)
