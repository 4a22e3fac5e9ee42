"""One GPU for a few minutes: measures how to train there, trains on, evaluates.

    python bench/one_card.py --data DIR --out DIR --minutes 7

``DIR`` of the data is CIFAR-10 as every command takes it. The images are decoded once; then so many
processes share the card (with NVIDIA's MPS where its control program is found), and

1. train for some seconds with each of ``SETTINGS`` and choose the one that learns most a second,
   by the noise of a network's gradient (:func:`noise`) and how many networks it trains;
2. train with that one for the minutes given, from ``--init``;
3. evaluate: the zoo, DeepNets-1M's test networks, those without normalisation;
4. profile three steps of the first process.

The folder gets ``measured.json``, ``profile.txt``, ``log.jsonl``, ``config.json``,
``ghn2-cifar10.safetensors`` (the averaged weights in half precision, written every minute as well)
and ``results.json``. ``--device cpu --small`` does all of it with tiny networks in a minute or two.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ghn_fast.data import Images, load_images
from ghn_fast.evaluation import EvaluationResult, evaluate
from ghn_fast.ghn.files import save
from ghn_fast.ghn.hub import from_pretrained
from ghn_fast.train import Processes, TrainConfig, Trainer, choose_device, process_group, read_log

SPLITS = ("train", "test")
WEIGHTS = "ghn2-cifar10.safetensors"
MIXTURE = {
    "deepnets": 0.30,
    "deepnets/attention": 0.06,
    "deepnets/bnfree": 0.04,
    "families": 0.27,
    "families/residual": 0.08,
    "families/plain": 0.03,
    "families/transformer": 0.08,
    "families/small": 0.04,
    "families/text": 0.02,
    "families/xcit": 0.02,
    "families/swin": 0.01,
    "families/coat": 0.05,
}
BASE = TrainConfig(
    seed=31,
    meta_batch=3,
    crop_share=0.0,
    mixture=MIXTURE,
    first_come=True,
    num_networks=None,
    cached_networks=0,
    widths=(32, 64, 96, 128),
    max_work=1000.0,
    max_parameters=24_000_000,
    optimizer="soap",
    betas=(0.9, 0.98),
    lr=2.5e-3,
    warmup_steps=30,
    ema_decay=0.99,
    normalise_networks=True,
    log_every=10,
    validate_every=0,
    checkpoint_every=0,
)
SMALL = replace(BASE, meta_batch=2, widths=(16,), max_work=60.0, max_parameters=1_000_000)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"image_batch": 128},
    {"image_batch": 128, "meta_batch": 12},
    {"image_batch": 256, "meta_batch": 12},
    {"image_batch": 256, "meta_batch": 12, "precision": "bfloat16"},
)
"""Larger steps wait less often for the slowest network of all."""
SMALL_SETTINGS: tuple[dict[str, Any], ...] = ({"image_batch": 8}, {"image_batch": 16})
NETWORK_NOISE, IMAGE_NOISE = 0.04, 15.0
"""Variance of a network's gradient (of length 1) that is the network's own, and that its images
add, over their number (``bench/gradient_noise.py``: 0.04 and about 0.95 with 16 images)."""


def noise(images: int) -> float:
    """Variance of the gradient of a network on so many images, beside what all have in common."""
    return NETWORK_NOISE + IMAGE_NOISE / images


# The first process of all: images, MPS, torchrun.


def store_images(source: str | None, folder: Path, small: bool) -> None:
    """Decodes the images once, for all processes."""
    for split in SPLITS:
        images = load_images(source, split).first(2000 if small else None)
        assert isinstance(images, Images)
        np.save(folder / f"{split}-images.npy", images.images.numpy())
        np.save(folder / f"{split}-labels.npy", images.labels.numpy())


def stored_images(folder: Path, split: str) -> Images:
    pixels, labels = (
        torch.from_numpy(np.load(folder / f"{split}-{part}.npy")) for part in ("images", "labels")
    )
    return Images(pixels, labels)


@contextmanager
def shared_card(is_cuda: bool, folder: Path) -> Iterator[dict[str, str]]:
    """The environment of processes that share the card at the same time, by MPS where it is."""
    control = shutil.which("nvidia-cuda-mps-control")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    # Shapes change with every network: what is cached and not used is given back.
    environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "garbage_collection_threshold:0.8")
    if not is_cuda or control is None:
        yield environment
        return
    places = {f"CUDA_MPS_{name}_DIRECTORY": str(folder / f"mps-{name}") for name in ("PIPE", "LOG")}
    for place in places.values():
        Path(place).mkdir()
    shared = {**environment, **places}
    if subprocess.run([control, "-d"], env=shared, check=False).returncode != 0:
        print("MPS does not start: the processes take turns on the card", flush=True)
        yield environment
        return
    try:
        yield shared
    finally:
        subprocess.run([control], input="quit\n", text=True, env=shared, check=False)


def launch(options: argparse.Namespace) -> int:
    options.out.mkdir(parents=True, exist_ok=True)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        folder = Path(name)
        start = time.perf_counter()
        store_images(options.data, folder, options.small)
        print(f"images decoded in {time.perf_counter() - start:.0f} s", flush=True)
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        run += ["--nproc-per-node", str(options.processes), __file__, *sys.argv[1:]]
        with shared_card(options.device != "cpu", folder) as environment:
            return subprocess.run(
                [*run, "--scratch", str(folder)], env=environment, check=False
            ).returncode


# What each of the processes does.


def measured(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Networks a second with a setting, once it runs: without the first two fifths of the time."""
    lines = [line for line in read_log(folder / "log.jsonl") if line["kind"] == "train"]
    warm = [line for line in lines if line["minutes"] > 0.4 * lines[-1]["minutes"]]
    networks = statistics.harmonic_mean([line["networks_per_second"] for line in warm])
    networks *= 1 - lines[-1]["left_out_networks"] / lines[-1]["networks"]
    shares = {
        part: round(statistics.mean(line["time_shares"][part] for line in warm), 3)
        for part in warm[-1]["time_shares"]
    }
    return {
        "networks_per_second": round(networks, 1),
        "images_per_second": round(networks * config.image_batch),
        "progress": round(networks / noise(config.image_batch), 1),
        "left_out": lines[-1]["left_out_networks"],
        "steps": len(lines),
        "time_shares": shares,
    }


def choose(
    config: TrainConfig,
    settings: Sequence[dict[str, Any]],
    images: Images,
    options: argparse.Namespace,
    processes: Processes,
) -> TrainConfig:
    """The setting with which a second brings most."""
    rows = []
    for number, changes in enumerate(settings):
        tried, run = replace(config, **changes), options.scratch / f"measure-{number}"
        Trainer(replace(tried, max_minutes=options.measure / 60, log_every=1), run, images).fit()
        found = measured(tried, run) if processes.is_first else {}
        rows.append({**changes, **processes.first(found)})
        if processes.is_first:
            print(json.dumps(rows[-1]), flush=True)
        free_memory()
    if processes.is_first:
        write_json(options.out / "measured.json", rows)
    best = max(range(len(rows)), key=lambda number: rows[number]["progress"])
    return replace(config, **settings[best])


def profile(
    config: TrainConfig, images: Images, options: argparse.Namespace, processes: Processes
) -> None:
    """Where the first process spends three steps; the others take part."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if config.device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    trainer = Trainer(
        replace(config, steps=3, max_minutes=None), options.scratch / "profiled", images
    )
    if not processes.is_first:
        trainer.fit()
        return
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        trainer.fit()
    averages = profiler.key_averages()
    order = ["self_cpu_time_total"]
    order += ["self_device_time_total"] if config.device != "cpu" else []
    tables = [averages.table(sort_by=name, row_limit=40) for name in order]
    (options.out / "profile.txt").write_text("\n".join(tables))


def train(
    config: TrainConfig, images: Images, options: argparse.Namespace, processes: Processes
) -> None:
    """Trains; whatever happens the averaged weights are written."""
    trainer = Trainer(config, options.scratch / "run", images)
    ended = threading.Event()

    def export() -> None:
        save(trainer.average, options.out / WEIGHTS, dtype=torch.float16)
        for name in ("log.jsonl", "config.json"):
            shutil.copy(options.scratch / "run" / name, options.out / name)

    def every_minute() -> None:
        while not ended.wait(60):
            export()

    copying = threading.Thread(target=every_minute, daemon=True)
    try:
        if processes.is_first:
            copying.start()
        trainer.fit()
    finally:
        ended.set()
        if processes.is_first:
            copying.join()
            export()


def evaluation(
    images: Images, device: torch.device, folder: Path, processes: Processes, small: bool
) -> None:
    """Of the weights as they are shipped, in half precision, without tf32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    ghn = from_pretrained(folder / WEIGHTS).to(device)
    chosen: dict[str, tuple[int | None, int]] = {
        "zoo": (None, 512),
        "test": (100, 1000),
        "bnfree": (20, 256),
        "predefined": (None, 1000),
    }
    if small:
        chosen = {"test": (1, 64)}
    results: dict[str, Any] = {}
    for split, (networks, count) in chosen.items():
        start = time.perf_counter()
        found = evaluate(ghn, split, images.first(count), num_nets=networks, device=device)
        results[split] = summary(found)
        if processes.is_first:
            print(f"{split}: {found.summary()} {time.perf_counter() - start:.0f} s", flush=True)
            write_json(folder / "results.json", results)
        free_memory()


def summary(found: EvaluationResult) -> dict[str, Any]:
    return {
        **found.summary(),
        "networks": [
            {"index": network.index, "name": network.name, "top1": round(network.top1, 2)}
            for network in found.networks
        ],
    }


def free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")


def work(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    device = choose_device(options.device)
    if device.type == "cuda":
        # What the contexts and libraries of the processes take is beside this.
        torch.cuda.set_per_process_memory_fraction(0.85 / options.processes, device)
    config = replace(
        SMALL if options.small else BASE,
        device=options.device,
        init=options.init,
        max_minutes=options.minutes,
        **json.loads(options.set),
    )
    with process_group(device) as processes:
        images = stored_images(options.scratch, "train")
        if options.measure > 0:
            settings = SMALL_SETTINGS if options.small else SETTINGS
            warm_up = replace(config, **settings[0], steps=2, max_minutes=None)
            Trainer(warm_up, options.scratch / "warm-up", images).fit()  # compiles the kernels
            config = choose(config, settings, images, options, processes)
            free_memory()
        train(config, images, options, processes)
        processes.gather(None)  # the weights are written
        free_memory()
        test = stored_images(options.scratch, "test")
        evaluation(test, device, options.out, processes, options.small)
        free_memory()
        profile(config, images, options, processes)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="CIFAR-10")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.0, help="of training")
    parser.add_argument("--measure", type=float, default=15.0, help="seconds for each setting")
    parser.add_argument("--init", default="ghn2-cifar10", help="weights to start from")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--set", default="{}", help="settings of training to change, in JSON")
    parser.add_argument("--small", action="store_true", help="tiny, to try the command")
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    found = parse()
    if found.scratch is None:
        sys.exit(launch(found))
    work(found)
