"""How long networks take to run for the first time and again on a GPU, by memory format.

    python bench/memory_format.py --format channels_last
    python bench/memory_format.py --format contiguous

Networks of the train split, one after another, each forward and backward three times, as often as a
training step or two may use one. Run each format in a process of its own: what cuDNN has prepared
for a shape it keeps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.nets import build_net
from ghn_fast.train import TrainConfig
from ghn_fast.train.networks import training_args

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
CONFIG = TrainConfig(
    widths=(32, 64), max_work=600, max_parameters=10_000_000, num_networks=None, seed=17
)
CLASSES = 10


def networks(count: int) -> Iterator[nn.Module]:
    found = index = 0
    while found < count:
        net_args = training_args(CONFIG, index)
        if net_args is not None:
            found += 1
            yield build_net(net_args, CLASSES, is_imagenet_input=False).eval()
        index += 1


def milliseconds(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    F.cross_entropy(network(images), labels).backward()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", choices=FORMATS, default="contiguous")
    parser.add_argument("--networks", type=int, default=9)
    parser.add_argument("--images", type=int, default=48)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "needs a CUDA device\n")
    images = torch.randn(options.images, 3, 32, 32, device="cuda")
    images = images.contiguous(memory_format=FORMATS[options.format])
    labels = torch.randint(CLASSES, (options.images,), device="cuda")
    rows = []
    for network in networks(options.networks):
        network.cuda()
        rows.append([milliseconds(network, images, labels) for _ in range(3)])
        convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
        print(f"{convolutions} convolutions:", *(f"{time:.0f} ms" for time in rows[-1]), flush=True)
    first, _, third = (statistics.median(times) for times in zip(*rows[1:], strict=True))
    print(f"{options.format}, medians without the first network: {first:.0f}, then {third:.0f} ms")


if __name__ == "__main__":
    main()
