"""The output layer of a classifier in closed form, for anybody's classes.

A GHN predicts the layers before for pictures like those it was trained on, and an output layer for
the classes of that data set. For other classes the output layer is one linear solve away: ridge
regression of the classes on the features that the predicted network gives (Hoerl and Kennard 1970).
"""

from __future__ import annotations

from ghn_fast.head.fit import HeadReport, best_scale, fit_head_, output_layers

__all__ = ["HeadReport", "best_scale", "fit_head_", "output_layers"]
