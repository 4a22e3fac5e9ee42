"""What the operating system and the devices are asked for: processes, files, memory.

Knows nothing of graphs, networks or GHNs.
"""
