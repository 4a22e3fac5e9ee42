"""``ppuda.ghn``: graph hypernetworks."""
