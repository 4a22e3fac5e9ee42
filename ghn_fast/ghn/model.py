"""GHN-1, GHN-2 and the MLP baseline: one model, told apart by its configuration."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ghn_fast._system.device import to_device
from ghn_fast.ghn.config import GHNConfig
from ghn_fast.ghn.decode.decoder import ConvDecoder, MLPDecoder
from ghn_fast.ghn.embed.gated_gnn import GatedGNN
from ghn_fast.ghn.embed.shape_encoder import PositionTable, ShapeEncoder, shape_as_4d
from ghn_fast.ghn.mlp import MLP
from ghn_fast.ghn.place.assign import assign
from ghn_fast.ghn.place.block_table import VECTOR_RULES, BlockTable, Source, make_block_table
from ghn_fast.ghn.place.cache import PlanCache
from ghn_fast.ghn.place.decoded import Decoded
from ghn_fast.ghn.place.keep import by_value
from ghn_fast.ghn.place.leaves import Leaves
from ghn_fast.ghn.place.plan import Group, Plan, decoded_nodes, head_nodes, misfit, plan_for
from ghn_fast.ghn.place.tiling import (
    along_channels,
    channel_axis,
    normalise,
    over_time,
    position_rows,
    repeat,
)
from ghn_fast.ghn.place.uses import Uses
from ghn_fast.ghn.pretrained import Pretrained
from ghn_fast.graph import Graph, GraphBatch, Node

_plans = PlanCache(size=64)


class GHN(Pretrained, nn.Module):
    """A Graph HyperNetwork (arXiv 1810.05749, arXiv 2110.13100).

    Parameter names and mathematics are those of the published checkpoints. Autocast makes no
    difference to what is predicted.

    Args:
        config: see :class:`GHNConfig`.

    Attributes:
        interpolates: kernels larger than the largest block are interpolated, not repeated.

    Examples:
        >>> ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> ghn.train()(model).conv1.weight.grad_fn is not None  # in the parameter's place
        True
    """

    interpolates = False

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        self.config = config
        hid, max_shape, num_classes = config.hid, config.max_shape, config.num_classes
        max_channels = max(max_shape[:2])
        if config.layernorm:
            self.ln = nn.LayerNorm(hid)
        # The checkpoints' name of the module and the public name of the method are the same; the
        # method wins in attribute lookup, so the module is reached through `node_type_embedding`.
        self._modules["embed"] = nn.Embedding(len(self.node_types), hid)
        self.shape_enc = self._make_shape_encoder(config)
        self.gnn = self._make_gnn(config)
        self.decoder = self._make_decoder(config)
        self.decoder_1d = MLP(hid, (2 * hid, 2 * max_channels), last_relu=False)
        self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(max_channels, num_classes))

    def __repr__(self) -> str:
        """On one line; its modules are listed by ``named_modules()``."""
        size = sum(parameter.numel() for parameter in self.parameters())
        block = "x".join(map(str, self.config.max_shape))
        return (
            f"{type(self).__name__}(hid={self.config.hid}, blocks of {block}, "
            f"{self.config.num_classes} classes, {size:,} parameters)"
        )

    @property
    def node_types(self) -> tuple[str, ...]:
        """The types that nodes of its graphs have, in the order of their embedding."""
        return self.config.node_types

    def _make_shape_encoder(self, config: GHNConfig) -> ShapeEncoder:
        return ShapeEncoder(config.hid, config.num_classes, config.max_shape)

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
        the models' own parameters. Parameters that are not decoded keep the values they have.

        Args:
            models: a model, or several.
            graphs: of the models; made from them where left out.

        Returns:
            What was passed as ``models``.

        Raises:
            ValueError: as many graphs as models are needed.
        """
        model_list = [models] if isinstance(models, nn.Module) else models
        self.hand_over(model_list, graphs, attach=self.training and torch.is_grad_enabled())
        return models

    def hand_over(
        self,
        models: Sequence[nn.Module],
        graphs: Graph | GraphBatch | Sequence[Graph] | None,
        attach: bool,
    ) -> None:
        """:meth:`forward`, whatever the mode.

        Args:
            models: several.
            graphs: of the models; made from them where left out.
            attach: put the predicted tensors themselves in the parameters' places, and on networks
                on the meta device also values for what is not decoded
                (:mod:`ghn_fast.ghn.place.fill`); otherwise copy the values.

        Raises:
            ValueError: as many graphs as models are needed.
        """
        uses = [Uses.of(model) for model in models]
        batch = self.batch(models, graphs, uses)
        if not attach:
            self.write(batch, uses)
            return
        uses = _keeping(batch, uses)
        plan = plan_for(batch, self.config, uses)
        assign(uses, plan, self._decode_batch(batch, self._table(plan)), "attach")

    def attach_leaves(
        self,
        models: Sequence[nn.Module],
        graphs: Graph | GraphBatch | Sequence[Graph] | None = None,
    ) -> Leaves:
        """Puts predicted tensors that are cut off from the GHN in the places of the parameters.

        For loops that differentiate the models one by one, each up to its predicted parameters,
        and the GHN once for all of them: see :class:`ghn_fast.ghn.place.leaves.Leaves`.

        Args:
            models: several.
            graphs: of the models; made from them where left out.

        Raises:
            ValueError: as many graphs as models are needed.
        """
        uses = [Uses.of(model) for model in models]
        batch = self.batch(models, graphs, uses)
        uses = _keeping(batch, uses)
        plan = plan_for(batch, self.config, uses)
        leaves = Leaves(self._decode_batch(batch, self._table(plan)), len(models))
        assign(uses, plan, leaves, "attach")
        return leaves

    @torch.no_grad()
    def write(self, batch: GraphBatch, uses: Sequence[Uses], fill: bool = False) -> Plan:
        """Writes predicted values into the models' own parameters.

        What follows from the architecture alone is kept for the next time (:class:`PlanCache`).

        Args:
            batch: of the models' graphs.
            uses: of the models.
            fill: nothing has a value worth keeping; what is not decoded gets one by
                :mod:`ghn_fast.ghn.place.fill`.

        Returns:
            The plan, which says also what was done to parameters that are not decoded.
        """
        uses = uses if fill else _keeping(batch, uses)
        plan, table = _plans.get(batch, self.config, uses, self.interpolates)
        done = assign(uses, plan, self._decode_batch(batch, table), "fill" if fill else "write")
        kept = [{**reasons, **set_} for reasons, set_ in zip(plan.kept, done, strict=True)]
        return replace(plan, kept=kept)

    def _table(self, plan: Plan) -> BlockTable:
        return make_block_table(plan, self.config, self.interpolates)

    def _decode_batch(self, batch: GraphBatch, table: BlockTable) -> Decoded:
        embeddings = self.node_embeddings(batch)
        with self.without_autocast():
            blocks = self.blocks(embeddings, table)
            return Decoded(blocks, table, list(self._decode_groups(embeddings, table.direct)))

    def without_autocast(self) -> torch.autocast:
        """In which a GHN is run: what it predicts are weights, whatever their networks run in."""
        return torch.autocast(self.node_type_embedding.weight.device.type, enabled=False)

    def blocks(self, embeddings: Tensor, table: BlockTable) -> list[Tensor]:
        """The tensors of blocks, one for each of the table's views.

        Args:
            embeddings: (sum N, hid).
            table: of the batch.
        """
        nodes = {source: to_device(rows, embeddings.device) for source, rows in table.nodes.items()}
        decoded: dict[Source, Tensor] = {}
        kernels = {source.size: rows for source, rows in nodes.items() if source.kind == "kernel"}
        if kernels:
            found = self.decoder.kernels(embeddings, kernels)
            sources = [Source("kernel", size) for size in kernels]
            decoded.update(zip(sources, found, strict=True))
        for source, rows in nodes.items():
            if source.kind != "kernel":
                decoded[source] = self._decoded(source, embeddings[rows])
        return [decoded[view.source].view(-1, *view.shape) for view in table.views]

    def _decoded(self, source: Source, x: Tensor) -> Tensor:
        if source.kind == "class_weight":
            return self.decoder.class_weight(x, source.size[1])
        vectors = self._vectors(x)
        return self.bias_class(vectors[:, 1]) if source.kind == "class_bias" else vectors

    def predict_groups(self, batch: GraphBatch, plan: Plan) -> Iterator[tuple[Group, Tensor]]:
        """Each group of the plan with its predicted parameters (n, *shape).

        The reference path, group by group in plain PyTorch: :meth:`forward` gives the same values.
        """
        return self._decode_groups(self.node_embeddings(batch), plan.groups)

    def _decode_groups(
        self, embeddings: Tensor, groups: Sequence[Group]
    ) -> Iterator[tuple[Group, Tensor]]:
        for group in groups:
            nodes = to_device(torch.tensor(group.nodes, device="cpu"), embeddings.device)
            x = embeddings[nodes]
            values = self.decode(x, group.rule, group.shape, group.fan_in)
            yield group, values if group.factor == 1 else values / group.factor

    def node_embeddings(self, batch: GraphBatch, sizes: Tensor | None = None) -> Tensor:
        """(sum N, hid): the embeddings that parameters are decoded from.

        Args:
            batch: of graphs.
            sizes: (sum N, 4) int64, the nodes' shapes as (out, in, height, width), zeros for those
                without one, where they are at hand; else they are asked of the graphs.
        """
        types = self.node_type_embedding
        device = types.weight.device
        batch = batch.to(device)
        if sizes is None:
            shapes = [self.shape_enc.indices(self._encoded_nodes(graph)) for graph in batch]
            indices = torch.cat(shapes)
        else:
            indices = self.shape_enc.indices_of(sizes)
        with self.without_autocast():
            x = self.shape_enc(types(batch.node_types), to_device(indices, device))
            x = self._propagate(x, batch)
            return self.ln(x) if self.config.layernorm else x

    def _propagate(self, x: Tensor, batch: GraphBatch) -> Tensor:
        """(sum N, hid) to the same: what the nodes learn from each other."""
        if isinstance(self.gnn, GatedGNN):
            return self.gnn(x, batch.distances, batch.num_nodes)
        propagated: Tensor = self.gnn(x)
        return propagated

    def decode(
        self, x: Tensor, rule: str, shape: Sequence[int], fan_in: float | None = None
    ) -> Tensor:
        """Decodes embeddings x (n, hid) to parameters (n, *shape) by their rule.

        Args:
            x: of the parameters' nodes.
            rule: see :class:`ghn_fast.ghn.place.plan.Group`.
            shape: of each parameter.
            fan_in: of a weight, where it does not follow from the shape.
        """
        with self.without_autocast():
            return self._decode(x, rule, shape, fan_in)

    def _decode(self, x: Tensor, rule: str, shape: Sequence[int], fan_in: float | None) -> Tensor:
        if rule == "pos_enc":
            return self._position_table(x, shape)
        if rule == "video_weight":
            kernel = (*shape[:2], *shape[3:])
            return over_time(self._decode(x, "weight", kernel, fan_in), shape[2])
        if rule in (*VECTOR_RULES, "class_bias"):
            length = shape[channel_axis(shape)]
            vectors = repeat(self._vectors_of(x, rule, length), (length,))
            return along_channels(self._normalised(vectors, rule), shape)
        blocks = self._blocks(x, rule, shape)
        values = repeat(blocks.view(len(x), *blocks.shape[1 : 1 + len(shape)]), shape)
        return self._normalised(values, rule, fan_in)

    def _normalised(self, values: Tensor, rule: str, fan_in: float | None = None) -> Tensor:
        return normalise(values, rule, fan_in) if self.config.weight_norm else values

    @torch.no_grad()
    def embed(self, model_or_graph: nn.Module | Graph) -> Tensor:
        """(hid,): the mean of the node embeddings (arXiv 2110.13100, section 5.2)."""
        if not isinstance(model_or_graph, Graph):
            model_or_graph = self.graph_of(model_or_graph)
        return self.node_embeddings(GraphBatch([model_or_graph])).mean(dim=0)

    @property
    def node_type_embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self._modules["embed"])

    def batch(
        self,
        models: Sequence[nn.Module],
        graphs: Graph | GraphBatch | Sequence[Graph] | None,
        uses: Sequence[Uses] | None = None,
    ) -> GraphBatch:
        """The graphs of the models as one batch, with the shapes of the models' parameters.

        Args:
            models: several.
            graphs: of the models; made from them where left out.
            uses: of the models, where they are known already.

        Raises:
            ValueError: as many graphs as models are needed, each of its model.
        """
        if graphs is None:
            return GraphBatch([self.graph_of(model) for model in models])
        passed = [graphs] if isinstance(graphs, Graph) else list(graphs)
        if len(passed) != len(models):
            raise ValueError(f"{len(models)} models were passed with {len(passed)} graphs")
        given = [self.graph_of(model, graph) for model, graph in zip(models, passed, strict=True)]
        uses = uses if uses is not None else [Uses.of(model) for model in models]
        pairs = zip(given, uses, strict=True)
        fitting = [graph.with_shapes(known.parameters) for graph, known in pairs]
        unchanged = all(a is b for a, b in zip(passed, fitting, strict=True))
        return graphs if isinstance(graphs, GraphBatch) and unchanged else GraphBatch(fitting)

    def graph_of(
        self, model: nn.Module, graph: Graph | None = None, example_inputs: Any = None
    ) -> Graph:
        """The graph of a model as this GHN reads it.

        Args:
            model: any.
            graph: of the model, if there is one: it is returned if it was made with the types of
                nodes that the GHN knows. Without ``channel_nodes`` a graph does not show which
                channels change places, and is made anew for a GHN that knows them.
            example_inputs: see :meth:`ghn_fast.Graph.from_model`.

        Raises:
            ghn_fast.graph.TraceError: the model could not be run; says what to pass.

        Examples:
            >>> model = torchvision.models.resnet18(num_classes=10)
            >>> graph = ghn_fast.from_pretrained().graph_of(model)
            >>> model is ghn_fast.predict(model, graph=graph)
            True
        """
        if graph is not None and self._reads(graph):
            return graph
        made = Graph.from_model(model, example_inputs, self.node_types)
        if graph is None:
            return made
        warnings.warn(
            "the graph was made with other types of nodes than the GHN knows, and is made anew: "
            "make it by ghn.graph_of(model)",
            stacklevel=3,
        )
        return replace(made, max_distance=graph.max_distance)

    def _reads(self, graph: Graph) -> bool:
        return graph.types is None or graph.types == self.node_types

    def _encoded_nodes(self, graph: Graph) -> Sequence[Node]:
        """The nodes as the shape encoder sees them.

        An output layer that is not predicted because it has another number of outputs is encoded
        with the number the GHN knows, so that the rest of the network is not disturbed.

        Raises:
            ValueError: a graph made with other types of nodes than the GHN knows.
        """
        unknown = {node.type for node in graph.nodes}.difference(self.node_types)
        if unknown or not self._reads(graph):
            fault = (
                f"has nodes of types {', '.join(sorted(unknown))}, which the GHN does not know"
                if unknown
                else "was made with other types of nodes than the GHN knows"
            )
            raise ValueError(f"the graph {fault}: make it by ghn.graph_of(model)")
        encoded = decoded_nodes(graph, self.config)
        if misfit(graph, self.config) is None:
            return encoded
        nodes = list(encoded)
        for position in head_nodes(graph):
            node = nodes[position]
            assert node.shape is not None
            shape = (self.config.num_classes, *node.shape[1:])
            nodes[position] = replace(node, shape=shape)
        return nodes

    def _vectors_of(self, x: Tensor, rule: str, length: int) -> Tensor:
        """(n, channels): what a rule makes vectors of a length from."""
        if rule == "class_bias":
            return self.bias_class(self._vectors(x)[:, 1])
        return self._vectors(x)[:, 0 if rule == "norm_weight" else 1]

    def _position_table(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Tables (n, *shape) of a grid of positions and of extra rows before it."""
        table = PositionTable.of(shape)
        grid = self._kernels(x, (1, table.channels, table.height, table.width))
        rows = repeat(position_rows(grid, table.rows), (1, table.rows, table.channels))
        if table.channels_first:
            rows = rows.transpose(2, 3)
        return rows.reshape(len(x), *shape)

    def _blocks(self, x: Tensor, rule: str, shape: Sequence[int]) -> Tensor:
        """Decoded blocks: at most as large as ``max_shape``, at most as large as needed."""
        if rule == "class_weight":
            return self._class_weight(x, shape)
        return self._kernels(x, shape_as_4d(shape))

    def _kernels(self, x: Tensor, wanted: Sequence[int]) -> Tensor:
        """Blocks (n, out, in, h, w) of all positions wanted but of ``max_shape`` channels."""
        block = [min(size, most) for size, most in zip(wanted, self.config.max_shape, strict=True)]
        return self._resize(self.decoder(x, block), wanted)

    def _resize(self, blocks: Tensor, wanted: Sequence[int]) -> Tensor:
        """Blocks (n, out, in, h, w) to the spatial size that is wanted, where they are smaller."""
        return repeat(blocks, (*blocks.shape[1:3], *wanted[2:]))

    def _class_weight(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        channels = min(shape[1], self.config.max_shape[1])
        weight = self.decoder.class_weight(x, channels)
        return weight.reshape(*weight.shape, *(1,) * (len(shape) - 2))

    def _vectors(self, x: Tensor) -> Tensor:
        """(n, 2, channels): the weight and the bias of 1-D parameters."""
        return self.decoder_1d(x).view(len(x), 2, -1)


def _keeping(batch: GraphBatch, uses: Sequence[Uses]) -> list[Uses]:
    """Uses that know which values are there on purpose."""
    pairs = zip(batch, uses, strict=True)
    return [known.keeping(by_value(graph, known)) for graph, known in pairs]


def ghn1(num_classes: int = 10, **config: object) -> GHN:
    """A GHN-1: no virtual edges, no layer norm, no normalisation (arXiv 1810.05749).

    Examples:
        >>> ghn_fast.ghn1(num_classes=10, hid=8, max_shape=(8, 8, 3, 3)).config.ve
        False
    """
    settings = {"ve": False, "layernorm": False, "weight_norm": False, **config}
    return GHN(GHNConfig.from_dict({"num_classes": num_classes, **settings}))


def ghn2(num_classes: int = 10, **config: object) -> GHN:
    """A GHN-2 (arXiv 2110.13100). For ImageNet pass ``max_shape=(64, 64, 16, 16)``.

    Examples:
        >>> ghn = ghn_fast.ghn2(num_classes=100, hid=16, max_shape=(32, 32, 5, 5))
        >>> ghn.config.num_classes
        100
    """
    return GHN(GHNConfig.from_dict({"num_classes": num_classes, **config}))
