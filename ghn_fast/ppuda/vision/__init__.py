"""``ppuda.vision``: images.

Names and arguments only; what they do is done in :mod:`ghn_fast.data`.
"""
