"""DeepNets-1M without files: arguments from a seed, and graphs from arguments.

Knows the design space and its measures; nothing of published files.
"""
