"""Trains a small GHN on digits and few, cheap networks; the curve is train_ghn.png."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from pictures import digits

import ghn_fast
from ghn_fast.nets import build_ghost, count_multiply_adds, graph_of
from ghn_fast.train import train_step

STEPS, NETWORKS = 25, 2

torch.manual_seed(0)
batches, _ = digits()
nets = ghn_fast.DeepNets1M(split="train")
# The cheapest of the first networks, and thinner than they are.
costs = {index: count_multiply_adds(nets.net_args(index)) for index in range(500)}
cheap = [{**nets.net_args(i), "C": 16} for i in sorted(costs, key=lambda i: costs[i])[:8]]
ghn = ghn_fast.ghn2(num_classes=10, hid=16, max_shape=(32, 32, 7, 7)).train()
optimizer = torch.optim.AdamW(ghn.parameters(), lr=3e-3)
losses = []
for step in range(STEPS):
    graphs = [graph_of(cheap[(NETWORKS * step + i) % len(cheap)]) for i in range(NETWORKS)]
    models = [build_ghost(graph.net_args, 10, is_imagenet_input=False) for graph in graphs]
    pixels, labels = batches[step % len(batches)]
    pixels, labels = pixels[:64], labels[:64]
    images = pixels.chunk(NETWORKS), labels.chunk(NETWORKS)
    result = train_step(
        ghn, models, ghn_fast.GraphBatch(graphs), *images, optimizer, network_clip=2.0
    )
    losses.append(float(result.loss))

plt.plot(losses)
plt.xlabel("step")
plt.ylabel("cross-entropy of networks with predicted parameters")
plt.savefig("train_ghn.png", dpi=120)
print(f"loss {losses[0]:.2f} at first, {sum(losses[-5:]) / 5:.2f} at the end (chance: 2.30)")
