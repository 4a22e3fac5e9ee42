"""Endless random networks of the families that people use, for 32 x 32 images."""

from __future__ import annotations

from ghn_fast.nets.families.space import (
    FAMILIES,
    SPLITS,
    BeyondLimitsError,
    Member,
    family_of,
    sample_member,
)

__all__ = ["FAMILIES", "SPLITS", "BeyondLimitsError", "Member", "family_of", "sample_member"]
