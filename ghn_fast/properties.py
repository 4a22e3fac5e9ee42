"""Properties of networks from their embeddings, and the search for the best of many networks
(arXiv 2110.13100, section 5.2)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np

from ghn_fast.embedding import embed
from ghn_fast.evaluation import Labels, NetworkLabels
from ghn_fast.ghn import GHN
from ghn_fast.graph import NODE_TYPES
from ghn_fast.nets import DeepNets1M

GRID: dict[str, list[Any]] = {
    "C": [1, 10, 50, 100, 200, 500, 1000],
    "gamma": ["auto", 0.05, 0.1, 0.2, 0.5],
    "epsilon": [0.05, 0.1, 0.2],
}
"""Of the regression, as in the public code; the best is chosen by cross-validation."""
FOLDS = 5
RUNS = 5
LARGER_IS_BETTER = {
    "accuracy": True,
    "accuracy with noise": True,
    "inference time": False,
    "steps to learn": False,
}
"""The properties."""


@dataclass(frozen=True)
class Correlations:
    """How well the order of test networks by a property is predicted: Kendall's tau.

    Attributes:
        name: of the property.
        embeddings: of a regression on embeddings, in each of the runs.
        statistics: of one on statistics of the graphs.
        free: {name: tau} of single figures, as they are: a negative tau is as good as its opposite.
    """

    name: str
    embeddings: list[float]
    statistics: list[float]
    free: dict[str, float]


def correlations(labels: Labels, ghn: GHN) -> list[Correlations]:
    """Fits each property on the networks of val, and ranks those of test.

    A support-vector regression with a radial kernel, on mean node embeddings. The runs differ in
    how cross-validation divides the networks of val. Properties are brought to mean 0 and standard
    deviation 1 by the networks of val, where the public code takes them as they are, so that the
    grid does not depend on their units.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: there are too few networks.
    """
    fit, test = ([n for n in labels.networks if n.split == split] for split in ("val", "test"))
    if len(fit) < 2 * FOLDS or len(test) < 2:
        raise ValueError(
            f"there are labels of {len(fit)} networks of val and {len(test)} of test; needed are "
            f"{2 * FOLDS} and 2: measure more with ghn-fast nets measure"
        )
    level = learning_level(fit)
    truths = [property_values(networks, labels.steps, level) for networks in (fit, test)]
    pairs = [[of(networks) for networks in (fit, test)] for of in (_embedded(ghn), statistics)]
    free = free_values(test)

    found = []
    for name in LARGER_IS_BETTER:
        known, truth = truths[0][name], truths[1][name]
        embeddings, others = (
            [tau(fitted(x, known, seed).predict(x_test), truth) for seed in range(RUNS)]
            for x, x_test in pairs
        )
        single = {quantity: tau(values, truth) for quantity, values in free.items()}
        found.append(Correlations(name, embeddings, others, single))
    return found


@dataclass(frozen=True)
class Found:
    """The network that is predicted to be the best.

    Attributes:
        index: in the split.
        value, median: the property as predicted of it, and the median over all networks.
        networks, seconds: how many were embedded, and how long that took.
    """

    index: int
    value: float
    median: float
    networks: int
    seconds: float


def search(labels: Labels, ghn: GHN, name: str, nets: DeepNets1M) -> Found:
    """The best of many networks by a property, which is fitted on all labels.

    Args:
        labels: of any splits.
        ghn: embeds.
        name: one of :data:`LARGER_IS_BETTER`.
        nets: to search among, such as ``DeepNets1M("search")``.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: there are too few labels.
    """
    split = attrgetter("split")
    networks = sorted(labels.networks, key=split)  # groups are of neighbours
    if len(networks) < 2 * FOLDS:
        raise ValueError(f"there are {len(networks)} labels; needed are {2 * FOLDS}")
    values = property_values(networks, labels.steps, learning_level(networks))[name]
    of = _embedded(ghn)
    known = np.concatenate([of(list(group)) for _, group in groupby(networks, split)])
    regression = fitted(known, values)
    start = time.perf_counter()
    features = embed(nets, ghn).numpy()
    seconds = time.perf_counter() - start
    predicted = values.mean() + _spread(values) * regression.predict(features)
    best = int(np.argmax(predicted if LARGER_IS_BETTER[name] else -predicted))
    return Found(best, float(predicted[best]), float(np.median(predicted)), len(nets), seconds)


def tau(values: np.ndarray, truth: np.ndarray) -> float:
    """Kendall's, of two columns (n,)."""
    from scipy.stats import kendalltau

    return round(float(kendalltau(values, truth).statistic), 3)


def deviation_by_chance(count: int) -> float:
    """The standard deviation of Kendall's tau of so many values in two independent orders."""
    return math.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1)))


def fitted(features: np.ndarray, values: np.ndarray, seed: int = 0) -> Any:
    """The regression from features (n, d) to values (n,), with the best settings of the grid.

    Of values with mean 0 and standard deviation 1.
    """
    try:
        from joblib import parallel_config
        from sklearn.model_selection import GridSearchCV, KFold
        from sklearn.svm import SVR
    except ImportError:
        raise ImportError(
            "properties need the package scikit-learn: pip install 'ghn-fast[properties]'"
        ) from None
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    searched = GridSearchCV(SVR(), GRID, cv=folds, n_jobs=os.cpu_count())
    with parallel_config("threading"):  # the regression lets other threads run
        return searched.fit(features, (values - values.mean()) / _spread(values))


def _spread(values: np.ndarray) -> float:
    return float(values.std()) or 1.0


def property_values(
    networks: Sequence[NetworkLabels], steps: int, level: float
) -> dict[str, np.ndarray]:
    """{property: (n,)}; of learning, the steps until a level of training accuracy."""
    columns = {
        "accuracy": [n.trained for n in networks],
        "accuracy with noise": [n.noisy for n in networks],
        "inference time": [n.inference for n in networks],
        "steps to learn": [steps_to(level, n.curve, steps) for n in networks],
    }
    return {name: np.array(column) for name, column in columns.items()}


def free_values(networks: Sequence[NetworkLabels]) -> dict[str, np.ndarray]:
    """{figure: (n,)} of what costs nothing or little: the last are the first steps of SGD."""
    columns = {
        "parameters": [n.parameters for n in networks],
        "multiply-adds": [n.multiply_adds for n in networks],
        "depth": [n.depth for n in networks],
        "accuracy with predicted parameters": [n.predicted for n in networks],
        "first fifth of the training": [
            float(np.mean(n.curve[: max(len(n.curve) // 5, 1)])) for n in networks
        ],
    }
    return {name: np.array(column) for name, column in columns.items()}


def learning_level(networks: Sequence[NetworkLabels]) -> float:
    """The training accuracy that half of the networks have at half of their training."""
    return float(np.median([n.curve[len(n.curve) // 2] for n in networks]))


def steps_to(level: float, curve: Sequence[float], steps: int) -> float:
    """The step at which a curve of equal parts of a training reaches a level, between the middles
    of two parts in proportion; all steps where it does not."""
    part = steps / len(curve)
    before, middle = 0.0, 0.0
    for place, value in enumerate(curve):
        now = (place + 0.5) * part
        if value >= level:
            if value == before:  # a level of 0, which the curve only stays at
                return now
            return middle + (now - middle) * (level - before) / (value - before)
        before, middle = value, now
    return float(steps)


def statistics(networks: Sequence[NetworkLabels]) -> np.ndarray:
    """(n, 19) of graphs: the share of each node type, and logarithms of nodes, depth, parameters
    and multiply-adds."""
    rows = []
    for network in networks:
        batch, _ = DeepNets1M(network.split).arrays([network.index])
        nodes = len(batch.node_types)
        sizes = (nodes, network.depth, network.parameters, network.multiply_adds)
        counts = np.bincount(batch.node_types.numpy(), minlength=len(NODE_TYPES))
        rows.append([*(counts / nodes), *np.log(sizes)])
    return np.array(rows)


def _embedded(ghn: GHN) -> Any:
    def of(networks: Sequence[NetworkLabels]) -> np.ndarray:
        split = networks[0].split
        indices = [n.index for n in networks]
        return embed(DeepNets1M(split, num_nets=max(indices) + 1), ghn)[indices].numpy()

    return of
