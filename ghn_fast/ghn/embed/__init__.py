"""From the nodes of a batch of graphs to their embeddings.

Knows nothing of parameters, or of what is decoded from an embedding.
"""
