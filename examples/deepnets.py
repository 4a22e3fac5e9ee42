"""A thousand networks of DeepNets-1M, drawn in a moment; their sizes are deepnets.png."""

from __future__ import annotations

import time

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import ghn_fast

start = time.perf_counter()
figure, axis = plt.subplots()
for split in ("train", "test", "deep", "dense"):
    nets = ghn_fast.DeepNets1M(split=split, num_nets=250)
    nodes = [len(graph.nodes) for graph in nets]
    axis.hist(nodes, bins=40, range=(0, 800), histtype="step", label=split)
axis.set(xlabel="nodes of the graph", ylabel="networks of 250")
axis.legend()
figure.savefig("deepnets.png", dpi=120)
print(f"1,000 networks with their graphs in {time.perf_counter() - start:.1f} s")
