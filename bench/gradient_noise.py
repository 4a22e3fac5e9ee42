"""What makes the gradient of a GHN noisy: its images or its networks?

    python bench/gradient_noise.py --data DIR --networks 24 --batches 4 --images 16

The gradient of the GHN from each of some networks on each of some batches of images, and the mean
cosine-like product of two of them (over the mean square of one): for one network on two batches,
for two networks on one batch, and for two networks on two batches, which is what all networks and
images have in common. The variance of a step of ``m`` networks is (1 + (m - 1) c) / m of that of
one network, where ``c`` is the product for two networks on the images that they get.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import ghn_fast
from ghn_fast.data import ImageStream, load_images
from ghn_fast.ghn import GHN
from ghn_fast.graph import GraphBatch
from ghn_fast.train import TrainConfig, train_step
from ghn_fast.train.networks import Drawn, NetworkStream

STEP = 4
"""Networks of the step whose variance is printed."""


def gradient(ghn: GHN, network: Drawn, images: Tensor, labels: Tensor) -> Tensor:
    """(P,), of the loss of one network, whose predicted parameters' gradient has length 1."""
    still = torch.optim.SGD(ghn.parameters(), lr=0.0)
    graphs = GraphBatch([network.graph])
    options = {"grad_clip": 0.0, "normalise_networks": True}
    train_step(ghn, [network.model], graphs, images, labels, still, **options)
    zero = torch.zeros(())
    parts = [p.grad if p.grad is not None else zero.expand(p.shape) for p in ghn.parameters()]
    return torch.cat([part.flatten() for part in parts])


def products(gradients: Tensor) -> dict[str, float]:
    """Means over pairs of the products of (N, B, P) gradients of N networks on B batches."""
    networks, batches, _ = gradients.shape
    flat = gradients.flatten(0, 1)
    gram = (flat @ flat.T).view(networks, batches, networks, batches)
    same_network = torch.eye(networks, dtype=torch.bool)[:, None, :, None].expand_as(gram)
    same_batch = torch.eye(batches, dtype=torch.bool)[None, :, None, :].expand_as(gram)
    square = gram[same_network & same_batch].mean()
    return {
        "one network, two batches": (gram[same_network & ~same_batch].mean() / square).item(),
        "two networks, one batch": (gram[~same_network & same_batch].mean() / square).item(),
        "two networks, two batches": (gram[~same_network & ~same_batch].mean() / square).item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ghn", default="ghn2-cifar10")
    parser.add_argument("--data")
    parser.add_argument("--networks", type=int, default=24)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ghn = ghn_fast.from_pretrained(options.ghn).train()
    config = TrainConfig(
        widths=(24, 32, 48, 64, 96, 128),
        max_work=320,
        max_parameters=8_000_000,
        num_networks=None,
        cached_networks=0,
        meta_batch=options.networks,
        seed=options.seed,
    )
    networks, _ = NetworkStream(config, ghn.config.num_classes).draw(0)
    stream = ImageStream(load_images(options.data), options.images, options.seed)
    batches = [stream.batch(index, crop=False) for index in range(options.batches)]
    rows = []
    for number, network in enumerate(networks):
        rows.append(torch.stack([gradient(ghn, network, *batch) for batch in batches]))
        print(f"\r{number + 1} of {len(networks)} networks", end="", flush=True)
    found = products(torch.stack(rows))
    print()
    for name, value in found.items():
        print(f"{name:>28} {value:7.3f}")
    for name, key in (("the same images", "one batch"), ("their own", "two batches")):
        share = (1 + (STEP - 1) * found[f"two networks, {key}"]) / STEP
        print(f"{STEP} networks, {name}: {share:.2f} of the square of one")


if __name__ == "__main__":
    main()
