"""How good networks are: accuracy, baselines, results that survive an interruption.

Knows GHNs, networks and images; nothing of training a GHN.
"""

from __future__ import annotations

from ghn_fast._system.batch_norm import use_batch_statistics
from ghn_fast.evaluation.accuracy import (
    BATCH_SIZE,
    batches_in_order,
    calibrate,
    top1,
)
from ghn_fast.evaluation.baselines import SGD_BATCH, train_network
from ghn_fast.evaluation.errors import EvaluationError
from ghn_fast.evaluation.labels import Labels, NetworkLabels, load_labels, measure_labels
from ghn_fast.evaluation.results import EvaluationResult, NetworkResult
from ghn_fast.evaluation.run import evaluate

__all__ = [
    "BATCH_SIZE",
    "SGD_BATCH",
    "EvaluationError",
    "EvaluationResult",
    "Labels",
    "NetworkLabels",
    "NetworkResult",
    "batches_in_order",
    "calibrate",
    "evaluate",
    "load_labels",
    "measure_labels",
    "top1",
    "train_network",
    "use_batch_statistics",
]
