from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ghn_fast._system.processes import _all_devices, _backend, shares
from ghn_fast.ghn import GHN, ghn2
from ghn_fast.graph import GraphBatch
from ghn_fast.train import (
    NetworkStream,
    Processes,
    TrainConfig,
    choose_device,
    process_group,
    read_log,
    train_step,
)
from tests.train.test_trainer import TINY, make_trainer, state_of, train_lines

ROOT = Path(__file__).parents[2]
ROUNDED = 1e-2
"""Of a first step in single precision, which threads and processors round otherwise. That its
gradients are the same is tested in double precision."""
CHILD = """
import sys
sys.path.append(sys.argv[2])
from ghn_fast.train import choose_device, process_group
from tests.train.test_trainer import Path, TrainConfig, make_trainer
config = TrainConfig.load(sys.argv[3])
with process_group(choose_device(config.device)):
    make_trainer(Path(sys.argv[1]), config).fit()
"""
SHARED_STEP = replace(
    TINY,
    device="cpu",
    steps=4,
    num_networks=400,
    checkpoint_every=0,
    network_clip=1.2,
    lr=1e-4,
    validate_every=4,
    validation_networks=2,
)


def write_config(folder: Path, config: TrainConfig) -> list[str]:
    """What a child is started with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "child.py").write_text(CHILD)
    config.save(folder / "child.json")
    return [str(folder / "child.py"), str(folder), str(ROOT), str(folder / "child.json")]


def torchrun(folder: Path, config: TrainConfig, processes: int) -> None:
    launch(processes, write_config(folder, config), folder)


def launch(processes: int, arguments: list[str], folder: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", str(processes), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


TAKEN = replace(SHARED_STEP, first_come=True, normalise_networks=True, validate_every=0)
TAUGHT = replace(TAKEN, mixture={"deepnets": 1.0}, teacher="a file", crop_share=0.0)
MIXED = replace(TAKEN, mixture={"deepnets": 1.0, "families/plain": 1.0})
RUNS = {"dealt": SHARED_STEP, "taught": TAUGHT, "mixed": MIXED}
TOGETHER = """
import sys
sys.path.append(sys.argv[2])
from tests.train.test_processes import Path, run_together
run_together(Path(sys.argv[1]))
"""


def run_together(folder: Path) -> None:
    """What each of two processes does."""
    with process_group(choose_device("cpu")) as processes:
        for name, config in RUNS.items():
            make_trainer(folder / name, config).fit()
        torch.manual_seed(processes.rank)  # replicas that differ, until they are made equal
        ghn = ghn2(hid=8, max_shape=(16, 16, 7, 7)).train().double()
        with pytest.raises(RuntimeError, match="the processes 1 differs"):
            processes.check_equal(ghn)
        processes.broadcast(ghn)
        processes.check_equal(ghn)
        torch.save(double_gradients(ghn, processes), folder / f"{processes.rank}.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that two processes do here: starting them takes longer."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "together.py").write_text(TOGETHER)
    launch(2, ["together.py", str(folder), str(ROOT)], folder)
    return folder


def test_two_processes_learn_as_one(two_processes: Path, tmp_path: Path) -> None:
    make_trainer(tmp_path, replace(SHARED_STEP, meta_batch=4)).fit()
    two, one = train_lines(two_processes / "dealt"), train_lines(tmp_path)
    assert [line["networks"] for line in two] == [4, 8, 12, 16]
    # Of the first step: later ones grow what is rounded otherwise.
    assert two[0]["gradient_norm"] == pytest.approx(one[0]["gradient_norm"], rel=ROUNDED)
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-3)
    assert two[0]["limited_networks"] == one[0]["limited_networks"]
    validations = [
        [
            line["networks"]
            for line in read_log(folder / "log.jsonl")
            if line["kind"] == "validation"
        ]
        for folder in (two_processes / "dealt", tmp_path)
    ]
    assert validations == [[2], [2]]


def test_one_process_goes_on_with_what_two_began(two_processes: Path) -> None:
    folder = two_processes / "dealt"
    trainer = make_trainer(folder, replace(SHARED_STEP, meta_batch=4))
    assert trainer.step == 4
    with pytest.raises(ValueError, match="parts of accumulate: 1 -> 4"):
        make_trainer(folder, replace(SHARED_STEP, meta_batch=1, accumulate=4))
    with pytest.raises(ValueError, match="networks_per_step: 4 -> 2"):
        make_trainer(folder, SHARED_STEP)


@pytest.mark.parametrize("name", ["taught", "mixed"])
def test_networks_that_are_taken_are_those_of_one_process(
    name: str, two_processes: Path, tmp_path: Path
) -> None:
    config = replace(RUNS[name], meta_batch=4)
    make_trainer(tmp_path / "one", config).fit()
    two, one = train_lines(two_processes / name), train_lines(tmp_path / "one")
    assert [line["networks"] for line in two] == [4, 8, 12, 16]
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-3)
    assert two[0]["gradient_norm"] == pytest.approx(one[0]["gradient_norm"], rel=ROUNDED)
    assert state_of(two_processes / name)["network_position"] == 16
    if name == "mixed":
        make_trainer(tmp_path / "dealt", replace(config, first_come=False, steps=1)).fit()
        dealt = train_lines(tmp_path / "dealt")
        assert one[0]["loss"] == pytest.approx(dealt[0]["loss"], rel=1e-3)
        assert one[0]["gradient_norm"] == pytest.approx(dealt[0]["gradient_norm"], rel=ROUNDED)
    trainer = make_trainer(two_processes / name, config)
    assert (trainer.step, trainer.network_position) == (4, 16)


def test_accumulated_parts_learn_as_one(tmp_path: Path) -> None:
    """Their first step; that its gradients are equal is tested in float64 (test_step.py)."""
    runs = {"whole": {"meta_batch": 4}, "parts": {"meta_batch": 1, "accumulate": 4}}
    config = replace(SHARED_STEP, steps=1, network_clip=0.0, validate_every=0)
    predicted = []
    for name, changes in runs.items():
        trainer = make_trainer(tmp_path / name, replace(config, **changes))
        predict = trainer.ghn.attach_leaves
        calls: list[int] = []

        def attach(models: Any, graphs: Any, predict: Any = predict, calls: Any = calls) -> Any:
            calls.append(len(models))
            return predict(models, graphs)

        trainer.ghn.attach_leaves = attach  # type: ignore[method-assign]
        trainer.fit()
        predicted.append(calls)
    assert predicted == [[4], [1, 1, 1, 1]]
    whole, parts = (train_lines(tmp_path / name)[0] for name in runs)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-3)
    assert parts["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=ROUNDED)


def double_gradients(ghn: GHN, processes: Processes) -> list[Tensor | None]:
    """Of one step of four networks in float64, that the processes share."""
    config = replace(SHARED_STEP, meta_batch=4 // processes.size)
    drawn, _ = NetworkStream(config, 10, processes=processes).draw(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=generator)
    models, graphs = [n.model for n in drawn], GraphBatch([n.graph for n in drawn])
    optimizer = torch.optim.SGD(ghn.parameters(), lr=0.0)
    options = {"network_clip": 1.2, "processes": processes}
    result = train_step(ghn, models, graphs, images, torch.arange(4), optimizer, **options)
    assert result.updated
    assert result.limited >= 1
    return [parameter.grad for parameter in ghn.parameters()]


def test_two_processes_have_the_gradient_of_one(two_processes: Path) -> None:
    torch.manual_seed(0)
    ghn = ghn2(hid=8, max_shape=(16, 16, 7, 7)).train().double()
    alone = double_gradients(ghn, Processes())
    for rank in range(2):
        shared = torch.load(two_processes / f"{rank}.pt", weights_only=True)
        for together, one in zip(shared, alone, strict=True):
            assert (together is None) == (one is None)
            torch.testing.assert_close(together, one, rtol=1e-8, atol=1e-12)


def test_replicas_that_differ_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)
    trainer.save()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value, b"another"])
    trainer.processes = Processes(0, 2)
    with pytest.raises(RuntimeError, match="the processes 1 differs from that of the first"):
        trainer.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_sigterm_to_one_stops_both(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    common["OMP_NUM_THREADS"] = "1"
    command = [
        sys.executable,
        *write_config(tmp_path, replace(SHARED_STEP, steps=100_000, validate_every=0)),
    ]
    children = [
        subprocess.Popen(command, env={**common, "RANK": rank, "LOCAL_RANK": rank}, cwd=tmp_path)
        for rank in ("0", "1")
    ]
    try:
        deadline = time.monotonic() + 120
        log = tmp_path / "log.jsonl"
        while not log.exists() or log.read_text().count("\n") < 2:
            assert all(child.poll() is None for child in children)
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children[1].send_signal(signal.SIGTERM)
        assert [child.wait(timeout=120) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    assert state_of(tmp_path)["step"] == train_lines(tmp_path)[-1]["step"] >= 2


def test_networks_are_divided_by_their_nodes() -> None:
    config = TrainConfig(meta_batch=4, widths=(16,), num_networks=None)
    whole, after = NetworkStream(replace(config, meta_batch=8), 10).draw(16)
    parts = [NetworkStream(config, 10, processes=Processes(rank, 2)).draw(16) for rank in range(2)]
    assert [position for _, position in parts] == [after, after]
    indices = [[network.graph.index for network in part] for part, _ in parts]
    assert sorted(indices[0] + indices[1]) == sorted(n.graph.index for n in whole)
    nodes = [sum(network.graph.num_nodes for network in part) for part, _ in parts]
    assert max(nodes) < 1.15 * min(nodes)


def test_shares_are_even() -> None:
    assert shares([5.0, 4.0, 3.0, 3.0, 3.0], 2) == [[0, 3], [1, 2, 4]]
    assert shares([1.0, 1.0], 3) == [[0], [1], []]


def test_alone_nothing_is_exchanged() -> None:
    model = nn.Linear(2, 2)
    alone = Processes()
    alone.sum_gradients(model)
    assert alone.gather(3) == [3]
    assert alone.first("x") == "x"
    assert not alone.any(False)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_devices_are_chosen_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="cuda:99 is not there"):
        choose_device("cuda:99")
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, not 'banana'"):
        choose_device("banana")


@pytest.mark.parametrize(
    ("device", "local", "backend"),
    [("cuda", 2, "nccl"), ("cuda", 3, "gloo"), ("cuda:0", 2, "gloo"), ("cpu", 2, "gloo")],
)
def test_processes_that_share_a_gpu_talk_over_gloo(
    device: str, local: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL refuses two processes on one GPU; all of them have to choose the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices = []
    for rank in range(local):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        devices.append(choose_device(device))
    store = dist.HashStore()
    with ThreadPoolExecutor(local) as pool:
        waiting = [
            pool.submit(_all_devices, store, rank, local, each) for rank, each in enumerate(devices)
        ]
        found = [_backend(one.result()) for one in waiting]
    assert found == [backend] * local
