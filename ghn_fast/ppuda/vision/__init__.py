"""``ppuda.vision``: images."""
