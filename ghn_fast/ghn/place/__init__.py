"""From blocks to the parameters of models: which node, by which rule, to which place.

Knows graphs and operations; nothing of embeddings or of how blocks are decoded.
"""
