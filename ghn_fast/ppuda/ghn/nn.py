"""``ppuda.ghn.nn``: GHN-1, GHN-2 and the MLP baseline, called as in the public code."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ghn_fast.checkpoint.errors import CheckpointError
from ghn_fast.ghn import GHN as CoreGHN
from ghn_fast.ghn import GHN3, GHNConfig
from ghn_fast.ghn.hub import from_pretrained, list_models
from ghn_fast.ghn.place.plan import Target, class_rules, decoded_nodes, make_plan
from ghn_fast.graph import Graph as CoreGraph
from ghn_fast.graph import GraphBatch as CoreBatch
from ghn_fast.graph import Node
from ghn_fast.ppuda.deepnets1m.graph import Graph, GraphBatch
from ghn_fast.ppuda.utils import capacity, default_device

CHECKPOINTS_VARIABLE = "GHN_FAST_CHECKPOINTS"
"""Names the folder, or the Hugging Face repository, that has the published files."""
CHECKPOINTS_FOLDER = Path("checkpoints")

Graphs: TypeAlias = Graph | GraphBatch | CoreGraph | CoreBatch | Sequence[Graph | CoreGraph]


def GHN1(dataset: str = "imagenet") -> GHN:
    """The published GHN-1 of "imagenet" or "cifar10", in evaluation mode.

    Raises:
        CheckpointError: its file is not found; says where to put it.
    """
    return _published(f"ghn1_{dataset}")


def GHN2(dataset: str = "imagenet") -> GHN:
    """The published GHN-2 of "imagenet" or "cifar10", in evaluation mode.

    For "cifar10" the GHN-2 that comes with this package takes its place, with a warning, where
    the file is not found.

    Raises:
        CheckpointError: its file is not found; says where to put it.
    """
    return _published(f"ghn2_{dataset}")


class GHN(CoreGHN):
    """A `ghn_fast.GHN` with the constructor, `load` and call of the public code.

    Args:
        max_shape, num_classes, hypernet, decoder, weight_norm, ve, layernorm, hid: fields of
            :class:`ghn_fast.GHNConfig`; the defaults are those of a GHN-1, as there.
        debug_level: what a prediction in evaluation mode prints: 0 nothing, 1 a summary, 2 also
            how many parameters have a gradient, 3 also the statistics of each.
        **settings: the other fields of :class:`ghn_fast.GHNConfig`, which the public code has not.
    """

    def __init__(
        self,
        max_shape: Sequence[int],
        num_classes: int,
        hypernet: str = "gatedgnn",
        decoder: str = "conv",
        weight_norm: bool = False,
        ve: bool = False,
        layernorm: bool = False,
        hid: int = 32,
        debug_level: int = 0,
        **settings: Any,
    ) -> None:
        out, into, height, width = max_shape
        super().__init__(
            GHNConfig(
                max_shape=(out, into, height, width),
                num_classes=num_classes,
                hypernet=hypernet,
                decoder=decoder,
                weight_norm=weight_norm,
                ve=ve,
                layernorm=layernorm,
                hid=hid,
                **settings,
            )
        )
        self.debug_level = debug_level

    @staticmethod
    def load(
        checkpoint_path: str | Path,
        debug_level: int = 1,
        device: torch.device | str | None = None,
        verbose: bool = False,
    ) -> GHN:
        """A GHN from a checkpoint of the public code or of this package, in evaluation mode.

        Args:
            checkpoint_path: a file, or another name that `ghn_fast.from_pretrained` knows.
            debug_level: see :class:`GHN`.
            device: by default a CUDA device where there is one.
            verbose: print the number of parameters.

        Raises:
            CheckpointError: it is missing, damaged, or a GHN-3's.
        """
        loaded = from_pretrained(checkpoint_path)
        if isinstance(loaded, GHN3):
            raise CheckpointError(
                f"{checkpoint_path} is a GHN-3; load it with ghn_fast.from_pretrained"
            )
        ghn = GHN(**loaded.config.to_dict(), debug_level=debug_level)
        ghn.load_state_dict(loaded.state_dict(), assign=True)
        if verbose:
            print(f"loaded {checkpoint_path}: a GHN with {capacity(ghn)[1]} parameters")
        return ghn.to(device or default_device()).eval()

    @property
    def max_shape(self) -> tuple[int, int, int, int]:
        return self.config.max_shape

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def weight_norm(self) -> bool:
        return self.config.weight_norm

    @property
    def ve(self) -> bool:
        return self.config.ve

    @property
    def layernorm(self) -> bool:
        return self.config.layernorm

    def forward(
        self,
        nets_torch: nn.Module | Sequence[nn.Module],
        graphs: Graphs | None = None,
        return_embeddings: bool = False,
        predict_class_layers: bool = True,
        bn_train: bool = True,
        *,
        bn_track_running_stats: bool | None = None,
        keep_grads: bool | None = None,
        reduce_graph: bool = False,
    ) -> Any:
        """Predicts the parameters of one network or of several.

        Args:
            nets_torch: the network, or a list.
            graphs: of the networks; made from them where left out.
            return_embeddings: also return the (sum N, hid) node embeddings.
            predict_class_layers: False leaves the classification layer as it is, and encodes it
                as one with the GHN's own number of classes. With True, a layer with another
                number of classes gets the first rows of what is predicted, or repeats them.
            bn_train: in evaluation mode, make every `nn.BatchNorm2d` use the statistics of the
                batch and keep none.
            bn_track_running_stats: ghn3's form of `bn_train`, with the opposite meaning and for
                training mode too; where it is given, `bn_train` is not looked at.
            keep_grads: ghn3's: True puts predicted tensors that carry gradients to the GHN in the
                parameters' places, False copies their values. By default True in training mode.
            reduce_graph: ghn3's: remove parameters that do not reach the output.

        Returns:
            What was passed as `nets_torch`, in evaluation mode the network itself for a list of
            one; with `return_embeddings`, a pair of it and the embeddings.

        Raises:
            ValueError: as many graphs as networks are needed, or a network has no memory to copy
                values to.
        """
        start = time.perf_counter()
        nets = [nets_torch] if isinstance(nets_torch, nn.Module) else list(nets_torch)
        attach = self.training if keep_grads is None else keep_grads
        if not attach:
            _check_memory(nets)
        batch = self.batch(nets, _core(graphs))
        if not predict_class_layers:
            batch = CoreBatch([self._without_classifier(graph) for graph in batch])
        embeddings = self._predict(nets, batch, attach, return_embeddings)
        if reduce_graph:
            _remove_unused(nets, batch)
        own = bn_track_running_stats is None
        if (bn_train and not self.training) if own else not bn_track_running_stats:
            for net in nets:
                _use_batch_statistics(net)
        if self.debug_level > 0 and not self.training:
            self._report(nets, batch, time.perf_counter() - start)
        result = nets[0] if len(nets) == 1 and not self.training else nets_torch
        return (result, embeddings) if return_embeddings else result

    def _predict(
        self, nets: Sequence[nn.Module], batch: CoreBatch, attach: bool, return_embeddings: bool
    ) -> Tensor | None:
        foreign = self._foreign_classifiers(batch)
        self.hand_over(nets, batch, attach=attach and torch.is_grad_enabled())
        if not foreign and not return_embeddings:
            return None
        embeddings = self.node_embeddings(batch)
        for target, rule, shape in foreign:
            values = self.decode(embeddings[target.node, None], rule, shape)
            _assign(nets[target.graph], target.parameter, values[0], attach)
        return embeddings

    def _foreign_classifiers(self, batch: CoreBatch) -> list[tuple[Target, str, tuple[int, ...]]]:
        """Classification layers with another number of classes than the GHN's.

        `ghn_fast` leaves them as they are; the public code predicts them like the others.
        """
        return [
            (Target(index, int(batch.offsets[index]) + position, node.parameter), rule, node.shape)
            for index, graph in enumerate(batch)
            for position, rule, node in self._classifier(graph)
            if node.parameter and node.shape and node.shape[0] != self.num_classes
        ]

    def _classifier(self, graph: CoreGraph) -> list[tuple[int, str, Node]]:
        """Position, rule and node of the classification layer's weight and bias."""
        rules = class_rules(graph, self.config)
        return [(position, rule, graph.nodes[position]) for position, rule in rules.items()]

    def _without_classifier(self, graph: CoreGraph) -> CoreGraph:
        """The graph with a classification layer of the GHN's own size, and not to be predicted."""
        nodes = list(graph.nodes)
        for position, _, node in self._classifier(graph):
            shape = (self.num_classes, *(node.shape or ())[1:])
            nodes[position] = Node(node.type, node.name, shape)
        # A graph of given nodes, which may leave parameters out (Graph.with_shapes).
        return replace(graph, nodes=tuple(nodes), types=None)

    def _encoded_nodes(self, graph: CoreGraph) -> Sequence[Node]:
        """The nodes as they are: `_without_classifier` has changed what is to be changed."""
        return decoded_nodes(graph, self.config)

    def _report(self, nets: Sequence[nn.Module], batch: CoreBatch, seconds: float) -> None:
        plan = make_plan(batch, self.config, nets)
        names: list[set[str]] = [set() for _ in nets]
        for target in (target for group in plan.groups for target in group.targets):
            names[target.graph].add(target.parameter)
        for target, _, _ in self._foreign_classifiers(batch):
            names[target.graph].add(target.parameter)
        device = next(self.parameters()).device
        for net, predicted, kept in zip(nets, names, plan.kept, strict=True):
            tensors = dict(net.named_parameters(remove_duplicate=False))
            sizes = [tensors[name].numel() for name in predicted]
            total = capacity(net, is_grad=False)[1]
            print(
                f"predicted {len(sizes)} tensors with {sum(sizes)} of {total} parameters "
                f"in {seconds:.4f} s on {device}"
            )
            for name in sorted(set(kept) - predicted):
                print(f"not predicted: {name} ({kept[name]})")
            if self.debug_level > 1:
                print(f"{Graph(net).num_valid_nodes()} tensors have a gradient")
            if self.debug_level > 2:
                _print_statistics(net)


def ghn_parallel(ghn: GHN) -> GHN:
    """Training on several GPUs in one process, which this package does not do.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "training a GHN on several GPUs of one process is not offered; train on one device"
    )


def _published(name: str) -> GHN:
    file, place = f"{name}.pt", os.environ.get(CHECKPOINTS_VARIABLE)
    folders = [*([Path(place).expanduser()] if place else []), CHECKPOINTS_FOLDER]
    found = next((folder / file for folder in folders if (folder / file).is_file()), None)
    if found is not None:
        return GHN.load(found)
    if place and not folders[0].is_dir() and "/" in place:
        return GHN.load(f"{place}:{file}")
    looked = ", ".join(str(folder / file) for folder in folders)
    own = name.replace("_", "-")
    if own not in list_models():
        raise CheckpointError(
            f"the published {file} is not here; looked for {looked}. Put the file from the "
            "folder 'checkpoints' of github.com/facebookresearch/ppuda there, or name its folder "
            f"or a Hugging Face repository that has it in ${CHECKPOINTS_VARIABLE}"
        )
    warnings.warn(
        f"the published {file} is not here (looked for {looked}); {own}, which comes with "
        "ghn_fast and was trained anew, takes its place and predicts other values",
        stacklevel=3,
    )
    return GHN.load(own)


def _assign(model: nn.Module, parameter: str, value: Tensor, attach: bool) -> None:
    """Gives a model a predicted parameter.

    Args:
        parameter: qualified name.
        attach: put the tensor itself in the parameter's place, so that gradients reach the GHN;
            otherwise copy its values into the parameter.
    """
    path, _, name = parameter.rpartition(".")
    module = model.get_submodule(path)
    if attach:
        module._parameters[name] = value  # type: ignore[assignment]
        return
    with torch.no_grad():
        module._parameters[name].copy_(value)  # type: ignore[union-attr]


def _core(
    graphs: Graphs | None,
) -> CoreGraph | CoreBatch | list[CoreGraph] | None:
    if isinstance(graphs, GraphBatch):
        return graphs.core
    if isinstance(graphs, Graph):
        return graphs.core
    if graphs is None or isinstance(graphs, CoreGraph | CoreBatch):
        return graphs
    return [graph.core if isinstance(graph, Graph) else graph for graph in graphs]


def _check_memory(nets: Iterable[nn.Module]) -> None:
    for net in nets:
        for name, parameter in net.named_parameters():
            if parameter.is_meta:
                raise ValueError(
                    f"parameter {name!r} has no memory to copy predicted values to; build the "
                    "network with light=False, or put the GHN in training mode"
                )


def _use_batch_statistics(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.training = True


def _remove_unused(nets: Iterable[nn.Module], batch: CoreBatch) -> None:
    for net, graph in zip(nets, batch, strict=True):
        for name in graph.unused:
            path, _, parameter = name.rpartition(".")
            net.get_submodule(path)._parameters[parameter] = None


def _print_statistics(net: nn.Module) -> None:
    for name, parameter in net.named_parameters():
        values = parameter.detach().float()
        print(
            f"{name:40s} {tuple(values.shape)!s:24s} min {values.min():.3f} max {values.max():.3f} "
            f"mean {values.mean():.3f} std {values.std():.3f} norm {values.norm():.3f}"
        )
