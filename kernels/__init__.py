"""Triton kernels, one file for each operation; the public operations are in ghn_fast.ops."""
