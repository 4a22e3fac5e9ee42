"""The published HDF5 files of DeepNets-1M: reading and writing them.

Knows how networks are generated; nothing of GHNs.
"""
