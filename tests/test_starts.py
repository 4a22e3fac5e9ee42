"""``bench/starts.py`` on a few small pictures: runs, going on, and the table of what was run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tests.graphs import SmallClassifier

ROOT = Path(__file__).parents[1]


IN_PROCESSES = """
import sys
sys.path += sys.argv[1:3]
import starts
from tests.graphs import SmallClassifier
starts.make_model = lambda _, classes: SmallClassifier(8, classes)
starts.main(sys.argv[3:])
"""
"""Of a program of its own: autograd works in no copy of a process that has used it. The checkout
comes last in its path: where the package is installed, that one is tested."""


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, threads: None) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_starts", ROOT / "bench" / "starts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_starts"] = module  # its dataclasses look there for their names
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "make_model", lambda _, classes: SmallClassifier(8, classes))
    return module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for label in range(2):
            (folder / part / str(label)).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 128, (16, 16, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / part / str(label) / f"{number}.png")
    return folder


def _options(pictures: Path, out: Path, *more: str) -> list[str]:
    small = ["--epochs", "1", "--batch-size", "8", "--architectures", "resnet18"]
    return ["run", "--signs", str(pictures), "--out", str(out), *small, "--device", "cpu", *more]


def test_runs_and_their_table(
    starts: ModuleType, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = ("--starts", "LSUV", "predicted, refined", "--seeds", "2", "--rates", "0.1", "0.001")
    options = _options(pictures, tmp_path, *few, "--processes", "2")
    program = [sys.executable, "-c", IN_PROCESSES, str(ROOT / "bench"), str(ROOT), *options]
    done = subprocess.run(
        program, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    jobs = starts.read(tmp_path / "starts.jsonl")
    assert len({job.key for job in jobs}) == len(jobs) == 6
    for start in ("LSUV", "predicted, refined"):
        own = [job for job in jobs if job.start == start]
        tuned = {job.rate: job.last for job in own if job.seed == 0}
        (other,) = [job for job in own if job.seed == 1]
        assert tuned[other.rate] == max(tuned.values())
        assert set(other.test) == {"0", "1"}
    before = (tmp_path / "starts.jsonl").read_text()
    starts.main(_options(pictures, tmp_path, *few))
    assert (tmp_path / "starts.jsonl").read_text() == before, "what was there was run again"
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- starts -->\nold\n<!-- end of starts -->\nafter\n")
    capfd.readouterr()
    starts.main(["table", str(tmp_path / "starts.jsonl"), "--into", str(page)])
    table = capfd.readouterr().out
    assert "| resnet18 | random | — | — | — | — | — |" in table
    assert page.read_text() == (
        f"before\n<!-- starts -->\n{table.strip()}\n<!-- end of starts -->\nafter\n"
    )


def test_nothing_starts_when_the_time_is_over(
    starts: ModuleType, pictures: Path, tmp_path: Path
) -> None:
    starts.main(_options(pictures, tmp_path, "--minutes", "1e-9"))
    assert not (tmp_path / "starts.jsonl").exists()


def test_a_run_that_fails_does_not_keep_others(
    starts: ModuleType, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(starts.ghn_fast, "lsuv_", refuse)
    few = ("--starts", "LSUV", "random", "--seeds", "2", "--rates", "0.1")
    with pytest.raises(SystemExit, match="some runs failed"):
        starts.main(_options(pictures, tmp_path, *few))
    jobs = starts.read(tmp_path / "starts.jsonl")
    assert [(job.start, job.seed) for job in jobs] == [("random", 0), ("random", 1)]


@pytest.mark.parametrize(("reached", "last"), [(101.0, "3"), (0.0, "4")])
def test_a_rate_that_is_behind_is_given_up(
    reached: float, last: str, starts: ModuleType, pictures: Path, tmp_path: Path
) -> None:
    first = _job(starts, epochs=4, batch=8, validation={"3": reached, "4": reached})
    path = tmp_path / "starts.jsonl"
    path.write_text(json.dumps(starts.asdict(first)) + "\n")
    few = ("--starts", "random", "--seeds", "2", "--rates", "0.1", "0.01", "--epochs", "4")
    starts.main(_options(pictures, tmp_path, *few))
    _, second, other = starts.read(path)
    assert (second.rate, max(second.test), max(second.validation)) == (0.01, last, last)
    assert (other.seed, other.rate) == (1, 0.1 if last == "3" else 0.01)
    assert max(other.test) == "4"


def _job(starts: ModuleType, **changed: Any) -> Any:
    job = starts.Job("signs", "resnet18", "random", 0, 0.1, 10, 64, "", starts.RECIPE)
    return replace(job, **{"pictures": [8, 2, 4], "device": "CPU", "torch": "2", **changed})


def test_the_first_seed_chooses_the_rate(starts: ModuleType) -> None:
    jobs = [
        _job(starts, validation={"10": 50.0}, test={"0": 10.0, "10": 60.0}),
        _job(starts, rate=0.01, validation={"10": 40.0}, test={"0": 10.0, "10": 90.0}),
        _job(starts, seed=1, validation={"10": 1.0}, test={"0": 20.0, "10": 64.0}),
        _job(starts, seed=2, validation={"0": 1.0}, test={"0": 30.0}),  # it failed
    ]
    assert starts.best(jobs) == {("signs", "resnet18", "random"): 0.1}
    row = next(line for line in starts.table(jobs).splitlines() if "| resnet18 | random" in line)
    assert row == ("| resnet18 | random | 0.1 | 20.0 ± 5.8 | — | — | 62.0 ± 2.0 (2 of 3 runs) |")


def test_means_are_of_the_networks_with_all_starts(starts: ModuleType) -> None:
    rows = {
        ("resnet18", 0): 10.0,
        ("resnet18", 1): 20.0,  # the second seed: a network counts once
        ("vit_tiny", 0): 35.0,
        ("vgg11_bn", 0): 90.0,  # without LSUV
    }
    jobs = [
        _job(
            starts,
            **{"architecture": name, "start": start, "seed": seed},
            test={str(epoch): value + epoch for epoch in starts.SHOWN},
        )
        for (name, seed), value in rows.items()
        for start in starts.STARTS
        if (name, start) != ("vgg11_bn", "LSUV")
    ]
    means = [line for line in starts.table(jobs).splitlines() if "mean of" in line]
    assert means == [
        f"| **mean of 2** | {start} | | **25.0** | **26.0** | **28.0** | **35.0** |"
        for start in ("random", "LSUV", "predicted", "predicted, refined")
    ]


def test_networks_that_are_not_tuned_are_named(starts: ModuleType) -> None:
    jobs = [_job(starts, rate=rate) for rate in (0.1, 0.01)]
    assert "Not tried with all rates" not in starts.table(jobs)
    jobs.append(_job(starts, architecture="vgg11_bn"))
    assert "Not tried with all rates yet: vgg11_bn." in starts.table(jobs)


def test_runs_of_different_conditions_make_no_table(starts: ModuleType) -> None:
    jobs = [_job(starts, ghn="a"), _job(starts, ghn="b")]
    with pytest.raises(SystemExit, match="differ in ghn"):
        starts.table(jobs)


def test_runs_of_another_recipe_are_neither_taken_nor_shown_beside_these(
    starts: ModuleType, pictures: Path, tmp_path: Path
) -> None:
    path, few = tmp_path / "starts.jsonl", ("--starts", "random", "--seeds", "1", "--rates", "0.1")
    old = _job(starts, epochs=1, batch=8, recipe="SGD", test={"0": 10.0, "1": 20.0})
    path.write_text(json.dumps(starts.asdict(old)) + "\n")
    starts.main(_options(pictures, tmp_path, *few))
    kept, new = starts.read(path)
    assert (kept.recipe, new.recipe) == ("SGD", starts.RECIPE)
    with pytest.raises(SystemExit, match="differ in recipe"):
        starts.table([kept, new])


def test_the_order_of_runs(starts: ModuleType) -> None:
    options = starts.parse(["run", "--signs", ".", "--cifar10", ".", "--out", "."])
    jobs = starts.plan(options, ["signs", "cifar10"], "digest")
    assert len(jobs) == len({job.key for job in jobs}) == 264
    first: dict[tuple[str, bool], list[int]] = {}
    for number, job in enumerate(jobs):
        first.setdefault((job.architecture, job.seed == 0), []).append(number)
    for before, after in zip(starts.ARCHITECTURES, starts.ARCHITECTURES[1:], strict=False):
        assert max(first[before, True]) < min(first[after, True]) < min(first[before, False])
    assert all((job.rate > 0) == (job.seed == 0) for job in jobs)
    assert all(bool(job.ghn) == job.start.startswith("predicted") for job in jobs)


def test_a_line_that_was_cut_off_is_none(starts: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "starts.jsonl"
    line = json.dumps(starts.asdict(_job(starts)))
    path.write_text(f"{line}\n{line[:40]}")
    assert len(starts.read(path)) == 1


def test_the_parts_of_a_task_share_no_picture(starts: ModuleType) -> None:
    labels = torch.arange(600) % 2
    pixels = torch.arange(600).view(-1, 1, 1, 1).expand(-1, 3, 2, 2) % 251
    pool = starts.Images(pixels.to(torch.uint8), labels, num_classes=2)
    index = replace(pool, images=pool.images.clone(), labels=labels)
    task = starts.make_task((index, index), seed=1)
    assert torch.bincount(task.train.labels).tolist() == [90, 90]
    assert torch.bincount(task.validation.labels).tolist() == [10, 10]
    assert not torch.equal(task.train.labels, task.train.labels.sort().values)
