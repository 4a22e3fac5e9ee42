"""``ppuda.ghn``: graph hypernetworks.

Names and arguments only; what they do is done in :mod:`ghn_fast.ghn`.
"""
