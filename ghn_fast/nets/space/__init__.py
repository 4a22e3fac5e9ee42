"""The design space of DeepNets-1M: genotypes, the networks of them, stems for small images.

Knows nothing of graphs or of how genotypes are drawn.
"""
