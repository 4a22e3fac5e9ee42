"""``ppuda.deepnets1m``: graphs and networks.

Names and arguments only; what they do is done in :mod:`ghn_fast.graph` and :mod:`ghn_fast.nets`.
"""
