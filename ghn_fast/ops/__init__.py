"""The operations that take the time: PyTorch reference, autograd, and the choice of a backend.

Knows tensors and the C++ core; nothing of graphs as objects, models or GHNs.
"""
