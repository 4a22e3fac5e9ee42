"""GHN-1, GHN-2 and the MLP baseline: one model, told apart by its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from ghn_fast.ghn.config import GHNConfig
from ghn_fast.ghn.decoder import ConvDecoder, MLPDecoder, Slices
from ghn_fast.ghn.gated_gnn import GatedGNN
from ghn_fast.ghn.layers import MLP
from ghn_fast.ghn.plan import Group, Plan, class_rules, make_plan, misfit
from ghn_fast.ghn.pretrained import Pretrained
from ghn_fast.ghn.rules import fill
from ghn_fast.ghn.shape_encoder import PositionTable, ShapeEncoder, shape_as_4d
from ghn_fast.ghn.tiling import (
    along_channels,
    channel_axis,
    normalise,
    over_time,
    position_rows,
    tile,
)
from ghn_fast.graph import NODE_TYPES, Graph, GraphBatch, Node

# Rules of parameters that are decoded to a vector.
VECTOR_RULES = ("norm_weight", "norm_bias", "bias", "class_bias")


class GHN(Pretrained, nn.Module):
    """A Graph HyperNetwork (arXiv 1810.05749, arXiv 2110.13100).

    Parameter names and mathematics are those of the published checkpoints.

    Args:
        config: see :class:`GHNConfig`.
    """

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        self.config = config
        hid, max_shape, num_classes = config.hid, config.max_shape, config.num_classes
        max_channels = max(max_shape[:2])
        if config.layernorm:
            self.ln = nn.LayerNorm(hid)
        # The checkpoints' name of the module and the public name of the method are the same; the
        # method wins in attribute lookup, so the module is reached through `node_type_embedding`.
        self._modules["embed"] = nn.Embedding(len(NODE_TYPES), hid)
        self.shape_enc = ShapeEncoder(hid, num_classes, max_shape)
        self.gnn = self._make_gnn(config)
        self.decoder = self._make_decoder(config)
        self.decoder_1d = MLP(hid, (2 * hid, 2 * max_channels), last_relu=False)
        self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(max_channels, num_classes))

    def _make_gnn(self, config: GHNConfig) -> nn.Module:
        if config.hypernet == "graphormer":
            raise ValueError("a graphormer is a GHN-3: use make_ghn(config)")
        if config.hypernet == "gatedgnn":
            return GatedGNN(config.hid, config.ve)
        return MLP(config.hid, (config.hid, config.hid))

    def _make_decoder(self, config: GHNConfig) -> ConvDecoder | MLPDecoder:
        decoder = ConvDecoder if config.decoder == "conv" else MLPDecoder
        return decoder(config.hid, config.max_shape, config.num_classes)

    def forward(
        self,
        models: nn.Module | Sequence[nn.Module],
        graphs: Graph | GraphBatch | Sequence[Graph] | None = None,
    ) -> nn.Module | Sequence[nn.Module]:
        """Predicts the parameters of one model or of several.

        In training mode with gradients enabled the models get tensors that carry gradients back
        to the GHN, in place of their parameters. Otherwise the predicted values are copied into
        the models' own parameters. Parameters that no node stands for get the values that
        :mod:`ghn_fast.ghn.rules` gives them.

        Args:
            models: a model, or several.
            graphs: of the models; made from them where left out.

        Returns:
            What was passed as ``models``.

        Raises:
            ValueError: as many graphs as models are needed.
        """
        model_list = [models] if isinstance(models, nn.Module) else list(models)
        batch = self.batch(model_list, graphs)
        plan = make_plan(batch, self.config, model_list)
        training = self.training and torch.is_grad_enabled()
        with torch.set_grad_enabled(training):
            for group, tensors in self.predict_groups(batch, plan):
                for target, tensor in zip(group.targets, tensors, strict=True):
                    assign(model_list[target.graph], target.parameter, tensor, attach=training)
        for model, kinds in zip(model_list, plan.others, strict=True):
            fill(model, kinds)
        return models

    def predict_groups(self, batch: GraphBatch, plan: Plan) -> Iterator[tuple[Group, Tensor]]:
        """Each group of the plan with its predicted parameters (n, *shape)."""
        embeddings = self.node_embeddings(batch)
        slices: Slices = {}
        for group in plan.groups:
            nodes = torch.tensor(group.nodes, device=embeddings.device)
            x = embeddings[nodes]
            yield group, self.decode(x, group.rule, group.shape, slices, group.fan_in)

    def node_embeddings(self, batch: GraphBatch) -> Tensor:
        """(sum N, hid): the embeddings that parameters are decoded from."""
        types = self.node_type_embedding
        device = types.weight.device
        batch = batch.to(device)
        shapes = [self.shape_enc.indices(self._encoded_nodes(graph)) for graph in batch]
        x = self.shape_enc(types(batch.node_types), torch.cat(shapes).to(device))
        x = self._propagate(x, batch)
        return self.ln(x) if self.config.layernorm else x

    def _propagate(self, x: Tensor, batch: GraphBatch) -> Tensor:
        """(sum N, hid) to the same: what the nodes learn from each other."""
        if isinstance(self.gnn, GatedGNN):
            return self.gnn(x, batch.distances, batch.num_nodes)
        propagated: Tensor = self.gnn(x)
        return propagated

    def decode(
        self,
        x: Tensor,
        rule: str,
        shape: Sequence[int],
        slices: Slices | None = None,
        fan_in: float | None = None,
    ) -> Tensor:
        """Decodes embeddings x (n, hid) to parameters (n, *shape) by their rule.

        Args:
            x: of the parameters' nodes.
            rule: see :class:`ghn_fast.ghn.plan.Group`.
            shape: of each parameter.
            slices: see :class:`ghn_fast.ghn.decoder.ConvDecoder`.
            fan_in: of a weight, where it does not follow from the shape.
        """
        if rule == "pos_enc":
            return self._position_table(x, shape, slices)
        if rule == "video_weight":
            kernel = (*shape[:2], *shape[3:])
            return over_time(self.decode(x, "weight", kernel, slices, fan_in), shape[2])
        if rule in VECTOR_RULES:
            length = shape[channel_axis(shape)]
            vectors = self._normalised(tile(self._vectors_of(x, rule), (length,)), rule)
            return along_channels(vectors, shape)
        blocks = self._blocks(x, rule, shape, slices)
        values = tile(blocks.view(len(x), *blocks.shape[1 : 1 + len(shape)]), shape)
        return self._normalised(values, rule, fan_in)

    def _normalised(self, values: Tensor, rule: str, fan_in: float | None = None) -> Tensor:
        return normalise(values, rule, fan_in) if self.config.weight_norm else values

    @torch.no_grad()
    def embed(self, model_or_graph: nn.Module | Graph) -> Tensor:
        """(hid,): the mean of the node embeddings (arXiv 2110.13100, section 5.2)."""
        if not isinstance(model_or_graph, Graph):
            model_or_graph = Graph.from_model(model_or_graph)
        return self.node_embeddings(GraphBatch([model_or_graph])).mean(dim=0)

    @property
    def node_type_embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self._modules["embed"])

    def batch(
        self,
        models: Sequence[nn.Module],
        graphs: Graph | GraphBatch | Sequence[Graph] | None,
    ) -> GraphBatch:
        """The graphs of the models as one batch, with the shapes of the models' parameters."""
        if graphs is None:
            return GraphBatch([Graph.from_model(model) for model in models])
        given = [graphs] if isinstance(graphs, Graph) else list(graphs)
        if len(given) != len(models):
            raise ValueError(f"{len(models)} models were passed with {len(given)} graphs")
        fitting = [graph.matched(model) for graph, model in zip(given, models, strict=True)]
        unchanged = all(a is b for a, b in zip(given, fitting, strict=True))
        return graphs if isinstance(graphs, GraphBatch) and unchanged else GraphBatch(fitting)

    def _encoded_nodes(self, graph: Graph) -> Sequence[Node]:
        """The nodes as the shape encoder sees them.

        A classification layer that is not predicted because it has another number of classes is
        encoded with the number the GHN knows, so that the rest of the network is not disturbed.
        """
        if misfit(graph, self.config) is None:
            return graph.nodes
        nodes = list(graph.nodes)
        for position in class_rules(graph, self.config):
            node = nodes[position]
            assert node.shape is not None
            shape = (self.config.num_classes, *node.shape[1:])
            nodes[position] = replace(node, shape=shape)
        return nodes

    def _vectors_of(self, x: Tensor, rule: str) -> Tensor:
        """(n, channels): the vectors that a rule takes."""
        if rule == "class_bias":
            return self.bias_class(self._vectors(x)[:, 1])
        return self._vectors(x)[:, 0 if rule == "norm_weight" else 1]

    def _position_table(self, x: Tensor, shape: Sequence[int], slices: Slices | None) -> Tensor:
        """Tables (n, *shape) of a grid of positions and of extra rows before it."""
        table = PositionTable.of(shape)
        grid = self._kernels(x, (1, table.channels, table.height, table.width), slices)
        rows = tile(position_rows(grid, table.rows), (1, table.rows, table.channels))
        if table.channels_first:
            rows = rows.transpose(2, 3)
        return rows.reshape(len(x), *shape)

    def _blocks(self, x: Tensor, rule: str, shape: Sequence[int], slices: Slices | None) -> Tensor:
        """Decoded blocks: at most as large as ``max_shape``, at most as large as needed."""
        if rule == "class_weight":
            return self._class_weight(x, shape, slices)
        return self._kernels(x, shape_as_4d(shape), slices)

    def _kernels(self, x: Tensor, wanted: Sequence[int], slices: Slices | None) -> Tensor:
        """Blocks (n, out, in, h, w) of all positions wanted but of ``max_shape`` channels."""
        block = [min(size, most) for size, most in zip(wanted, self.config.max_shape, strict=True)]
        return self._resize(self.decoder(x, block, slices), wanted)

    def _resize(self, blocks: Tensor, wanted: Sequence[int]) -> Tensor:
        """Blocks (n, out, in, h, w) to the spatial size that is wanted, where they are smaller."""
        return tile(blocks, (*blocks.shape[1:3], *wanted[2:]))

    def _class_weight(self, x: Tensor, shape: Sequence[int], slices: Slices | None) -> Tensor:
        channels = min(shape[1], self.config.max_shape[1])
        weight = self.decoder.class_weight(x, channels, slices)
        return weight.reshape(*weight.shape, *(1,) * (len(shape) - 2))

    def _vectors(self, x: Tensor) -> Tensor:
        """(n, 2, channels): the weight and the bias of 1-D parameters."""
        return self.decoder_1d(x).view(len(x), 2, -1)


def assign(model: nn.Module, parameter: str, value: Tensor, attach: bool) -> None:
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


def ghn1(num_classes: int = 10, **config: object) -> GHN:
    """A GHN-1: no virtual edges, no layer norm, no normalisation (arXiv 1810.05749)."""
    settings = {"ve": False, "layernorm": False, "weight_norm": False, **config}
    return GHN(GHNConfig.from_dict({"num_classes": num_classes, **settings}))


def ghn2(num_classes: int = 10, **config: object) -> GHN:
    """A GHN-2 (arXiv 2110.13100). For ImageNet pass ``max_shape=(64, 64, 16, 16)``."""
    return GHN(GHNConfig.from_dict({"num_classes": num_classes, **config}))
