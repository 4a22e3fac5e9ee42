"""``ppuda.deepnets1m``: graphs and networks."""
