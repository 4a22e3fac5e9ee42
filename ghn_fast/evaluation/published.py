"""Figures that were published, to stand beside those measured here.

CIFAR-10 test images, top-1 in percent: arXiv 2110.13100, table 1 and section 5.1. SGD of 1 epoch:
the mean over the accuracies of single networks that were published with the code.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Of a split; the best is None where it was not published."""

    mean: float
    best: float | None = None


CIFAR10: dict[str, dict[str, Published]] = {
    "GHN-2, published": {
        "test": Published(66.9, 77.1),
        "wide": Published(64.0),
        "deep": Published(60.5),
        "dense": Published(65.8),
        "bnfree": Published(36.8),
        "resnet50": Published(58.6),
        "vit": Published(11.4),
    },
    "GHN-1, published": {
        "test": Published(51.4, 59.9),
        "wide": Published(43.1),
        "deep": Published(48.3),
        "dense": Published(51.8),
        "bnfree": Published(13.7),
        "resnet50": Published(19.2),
        "vit": Published(18.2),
    },
    "MLP, published": {
        "test": Published(42.2, 60.2),
        "wide": Published(22.3),
        "deep": Published(37.9),
        "dense": Published(44.8),
        "bnfree": Published(23.9),
        "resnet50": Published(17.7),
    },
    "SGD of 1 epoch, published": {"test": Published(46.9)},
    "SGD of 50 epochs, published": {
        "test": Published(88.5, 93.1),
        "wide": Published(88.9),
        "deep": Published(84.5),
        "dense": Published(87.3),
        "bnfree": Published(45.6),
    },
}

DIFFERENCES = (
    "Published figures: arXiv 2110.13100, all 10,000 test images. Here the networks come from "
    "ghn_fast's own generator of DeepNets-1M, which draws from the same distribution but not the "
    "same networks; and CIFAR-10 stored as JPEG gives slightly other figures than its bitmaps."
)
