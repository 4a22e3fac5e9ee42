"""Gated message passing in Triton: each program walks one graph, level by level.

A level holds the nodes whose longest chain of heard nodes is equally long; they hear only earlier
levels. The nodes are renumbered once, level after level, so that a level is a range of rows and
what it hears is a range before it. A pass over all graphs of a batch is one launch: its programs
need nothing of each other, and within a program a barrier separates what is written from what is
read. Memory is coherent within a block of threads, so that states, messages and gates go through
global memory, where they stay in the nearest cache, and the backward pass finds them there.

What it costs (H100 SXM: 3.35 TB/s, 67 TFLOP/s in float32, 1.75 GHz), for a meta-batch of 8
DeepNets-1M graphs of 161 nodes and 97 levels on average, hid 32:

- flops: 2 passes x 2 x (1,290 nodes x (6 hid^2 + 4 hid width) + 115,000 pairs x 2 hid) = 72 M
  forward, twice that backward: 3 microseconds at the card's rate;
- bytes: 4 x 165 KB of states, 2 x 210 KB of distances, and 7 MB of saved intermediate values,
  all of which stay in the caches: 3 microseconds at the memory's rate;
- dependent steps: 194 levels (at most 258 x 2 where a graph is deep), each of four products that
  need one another. A product should take 600 to 1,000 cycles: two loads from the caches, shared
  memory, 32 to 64 multiply-adds a thread, a store and a barrier; a level then 1.5 to 2.5
  microseconds.

Measured on an H200 (Triton 3.6, ``bench/bench_gated_gnn.py``) a level takes 8 microseconds: 4.2 ms
forward for 8 graphs, the deepest of 258 levels, 5.3 ms for 64, and 7.0 and 8.8 ms with the backward
pass.

The steps decide, not flops or bytes; 64 graphs on 132 multiprocessors take as long as the deepest
of them. Everything that is not a chain is kept out of it: the products with the states before a
pass and all gradients of weights are single matrix products over all nodes. With hid 384 a level
reads the weights of its products (3 MB) from the second-level cache, about 25 microseconds.
"""

from ghn_fast.kernels.gated_gnn.launch import backward, forward, saved_like

__all__ = ["backward", "forward", "saved_like"]
