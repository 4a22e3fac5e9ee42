"""From node embeddings to blocks of parameters.

Knows nothing of graphs, models, or of where a block goes.
"""
