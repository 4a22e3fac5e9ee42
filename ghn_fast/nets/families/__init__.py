"""Endless random networks of the families that people use, for 32 x 32 images.

Knows graphs and what networks cost; nothing of genotypes, GHNs or training.
"""

from __future__ import annotations

from ghn_fast.nets.families.space import (
    FAMILIES,
    SPLITS,
    BeyondLimitsError,
    Member,
    family_of,
    family_split,
    sample_member,
)

__all__ = [
    "FAMILIES",
    "SPLITS",
    "BeyondLimitsError",
    "Member",
    "family_of",
    "family_split",
    "sample_member",
]
