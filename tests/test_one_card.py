"""The command that uses a GPU for some minutes, at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ghn_fast import from_pretrained

ROOT = Path(__file__).parents[1]


def write_pictures(folder: Path) -> None:
    pixels = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 7)):
        for label in range(10):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(pixels.integers(256, size=(32, 32, 3), dtype=np.uint8))
                picture.save(place / f"{number}.png")


def test_measures_trains_and_evaluates(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data")
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "bench" / "one_card.py"), "--small", "--device", "cpu"]
    command += ["--data", str(tmp_path / "data"), "--out", str(out), "--processes", "1"]
    command += ["--minutes", "0.02", "--measure", "0.5", "--set", '{"meta_batch": 1}']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "measured.json").read_text())
    assert all(row["networks_per_second"] > 0 for row in rows)
    chosen = max(rows, key=lambda row: row["progress"])["image_batch"]
    assert json.loads((out / "config.json").read_text())["image_batch"] == chosen
    assert "Self CPU" in (out / "profile.txt").read_text()
    assert (out / "log.jsonl").read_text()
    assert json.loads((out / "results.json").read_text())["test"]["networks"]
    assert from_pretrained(out / "ghn2-cifar10.safetensors").config.flat_kernels
