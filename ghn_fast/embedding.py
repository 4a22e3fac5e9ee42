"""Architectures as vectors: mean node embeddings of many, and which are alike (arXiv 2110.13100,
section 5.2)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from ghn_fast._system.workers import one_core_workers
from ghn_fast.ghn import GHN
from ghn_fast.ghn.hub import resolve
from ghn_fast.graph import NODE_TYPE_INDEX, Graph, GraphBatch, TraceError
from ghn_fast.nets import DeepNets1M

_BATCH = 32
"""Graphs; the distances of more do not stay in a core's cache."""

Named = Mapping[str, nn.Module | Graph]
Models = nn.Module | Graph | Named | Iterable[nn.Module | Graph]


@torch.no_grad()
def embed(models_or_graphs: Models, ghn: GHN | str | Path | None = None) -> Tensor:
    """Each architecture as a vector: the mean of its node embeddings.

    Args:
        models_or_graphs: a model or graph, or many, by name or not; of a
            :class:`ghn_fast.DeepNets1M` no graphs are made one by one.
        ghn: a GHN, or what :func:`ghn_fast.from_pretrained` takes; by default the shipped one.

    Returns:
        (n, hid) float32 on the CPU, in the order of what was given.

    Raises:
        ghn_fast.graph.TraceError: a model could not be run.

    Examples:
        >>> import ghn_fast
        >>> ghn_fast.embed(ghn_fast.DeepNets1M("test", num_nets=3)).shape
        torch.Size([3, 32])
    """
    network = resolve(ghn)
    if isinstance(models_or_graphs, DeepNets1M) and models_or_graphs.is_sampled:
        return _of_sampled(models_or_graphs, network)
    batches = _batches(_each(models_or_graphs), network)
    means = [_means(network, GraphBatch(graphs)) for graphs in batches]
    return torch.cat(means) if means else torch.empty(0, network.config.hid, device="cpu")


def similar(
    model: nn.Module | Graph,
    among: Named | Sequence[nn.Module | Graph],
    ghn: GHN | str | Path | None = None,
) -> list[tuple[str | int, float]]:
    """Which of several architectures a GHN sees as most alike to one.

    Args:
        model: that one.
        among: the others, by name or in a sequence.
        ghn: as for :func:`embed`.

    Returns:
        (name or position, cosine of the angle between the embeddings less the others' mean), the
        most alike first.

    Raises:
        ValueError: there are fewer than two others, which are their own mean.

    Examples:
        >>> import ghn_fast
        >>> nets = ghn_fast.DeepNets1M("test", num_nets=4)
        >>> ghn_fast.similar(nets[2], nets)[0][0]
        2
    """
    names: list[str | int] = list(among) if isinstance(among, Mapping) else [*range(len(among))]
    if len(names) < 2:
        raise ValueError(
            f"similar compares with the mean of the others, and there are {len(names)}: give two "
            "or more"
        )
    others = embed(among, ghn)
    centre = others.mean(dim=0)
    alike = torch.cosine_similarity(others - centre, embed(model, ghn) - centre)
    return [(names[place], float(alike[place])) for place in alike.argsort(descending=True)]


def principal_components(embeddings: Tensor, count: int = 2) -> Tensor:
    """Embeddings (n, hid) to (n, count): their coordinates along the directions of most variance.

    As in figure 6 of arXiv 2110.13100. The sign of each is that which makes its largest entry
    positive.

    Raises:
        ValueError: there are fewer embeddings or coordinates than ``count``.
    """
    if not 1 <= count <= min(embeddings.shape):
        rows, width = embeddings.shape
        raise ValueError(
            f"{rows} embeddings of {width} coordinates have {min(rows, width)} principal "
            f"components, and count is {count}"
        )
    left, scale, _ = torch.linalg.svd(embeddings - embeddings.mean(dim=0), full_matrices=False)
    found = left[:, :count] * scale[:count]
    largest = found.gather(0, found.abs().argmax(dim=0, keepdim=True))
    return found * largest.sign()


def _each(models: Models) -> Iterable[nn.Module | Graph]:
    if isinstance(models, (nn.Module, Graph)):
        return [models]
    return models.values() if isinstance(models, Mapping) else models


def _batches(given: Iterable[nn.Module | Graph], ghn: GHN) -> Iterator[list[Graph]]:
    graphs = (item if isinstance(item, Graph) else _graph(item, ghn) for item in given)
    while batch := list(islice(graphs, _BATCH)):
        yield batch


def _graph(model: nn.Module, ghn: GHN) -> Graph:
    try:
        return ghn.graph_of(model)
    except TraceError as error:
        raise TraceError(
            f"{error}\ngive embed or similar its graph instead: "
            "ghn_fast.from_pretrained(...).graph_of(model, example_inputs=...)"
        ) from error


def _of_sampled(nets: DeepNets1M, ghn: GHN) -> Tensor:
    """In threads of one core each: the operations of a small batch do not fill several."""
    # Output layers of other classes are encoded with the GHN's number, and all else is the same.
    nets = copy.copy(nets)
    nets.num_classes = ghn.config.num_classes
    parts = [range(start, min(start + _BATCH, len(nets))) for start in range(0, len(nets), _BATCH)]

    def run(indices: range) -> Tensor:
        batch, sizes = nets.arrays(indices)
        means = _means(ghn, batch, sizes)
        for place in _flattening(batch) if ghn.config.flat_kernels else ():
            means[place] = _means(ghn, GraphBatch([nets[indices[place]]]))[0]
        return means

    with one_core_workers(torch.get_num_threads()) as workers:
        means = list(workers.map(torch.no_grad()(run), parts))
    return torch.cat(means) if means else torch.empty(0, ghn.config.hid, device="cpu")


def _flattening(batch: GraphBatch) -> list[int]:
    """The networks that flatten their last maps, which a layer's shape does not tell."""
    average = batch.node_types == NODE_TYPE_INDEX["glob_avg"]
    parts = average.split(batch.num_nodes.tolist())
    return [place for place, part in enumerate(parts) if not part.any()]


def _means(ghn: GHN, batch: GraphBatch, sizes: Tensor | None = None) -> Tensor:
    nodes = ghn.node_embeddings(batch, sizes).cpu().float()
    return torch.stack([part.mean(dim=0) for part in nodes.split(batch.num_nodes.tolist())])
