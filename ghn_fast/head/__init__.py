"""The output layer of a classifier in closed form, for anybody's classes.

A GHN predicts the layers before for pictures like those it was trained on, and an output layer for
the classes of that data set. For other classes the output layer is one linear solve away: ridge
regression of the classes on the features that the predicted network gives (Hoerl and Kennard 1970).
"""

from __future__ import annotations

from ghn_fast.head.fit import HELD_OUT, HeadReport, chance, fit_head_
from ghn_fast.head.layers import output_layers
from ghn_fast.head.ridge import ABSENT_LOGIT, RIDGES, best_scale
from ghn_fast.head.soften import soften_

__all__ = [
    "ABSENT_LOGIT",
    "HELD_OUT",
    "RIDGES",
    "HeadReport",
    "best_scale",
    "chance",
    "fit_head_",
    "output_layers",
    "soften_",
]
