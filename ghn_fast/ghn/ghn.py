"""GHN-1, GHN-2 and the MLP baseline: one model, told apart by its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ghn_fast.ghn.config import GHNConfig
from ghn_fast.ghn.decoder import ConvDecoder, MLPDecoder, Slices
from ghn_fast.ghn.gated_gnn import GatedGNN
from ghn_fast.ghn.layers import MLP
from ghn_fast.ghn.plan import Group, Plan, classifier_rule, make_plan, unsupported
from ghn_fast.ghn.pretrained import Pretrained
from ghn_fast.ghn.shape_encoder import ShapeEncoder, shape_as_4d
from ghn_fast.ghn.tiling import normalise, position_rows, tile
from ghn_fast.graph import NODE_TYPES, Graph, GraphBatch, Node


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
        the models' own parameters.

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
        plan = make_plan(batch, self.config)
        training = self.training and torch.is_grad_enabled()
        with torch.set_grad_enabled(training):
            for group, tensors in self.predict_groups(batch, plan):
                for target, tensor in zip(group.targets, tensors, strict=True):
                    assign(model_list[target.graph], target.parameter, tensor, attach=training)
        return models

    def predict_groups(self, batch: GraphBatch, plan: Plan) -> Iterator[tuple[Group, Tensor]]:
        """Each group of the plan with its predicted parameters (n, *shape)."""
        embeddings = self.node_embeddings(batch)
        slices: Slices = {}
        for group in plan.groups:
            nodes = torch.tensor(group.nodes, device=embeddings.device)
            yield group, self.decode(embeddings[nodes], group.rule, group.shape, slices)

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
        self, x: Tensor, rule: str, shape: Sequence[int], slices: Slices | None = None
    ) -> Tensor:
        """Decodes embeddings x (n, hid) to parameters (n, *shape) by their rule."""
        blocks = self._blocks(x, rule, shape, slices)
        values = tile(blocks.view(len(x), *blocks.shape[1 : 1 + len(shape)]), shape)
        return normalise(values, rule) if self.config.weight_norm else values

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
        nodes = list(graph.nodes)
        for position in range(max(graph.num_nodes - 2, 0), graph.num_nodes):
            node = nodes[position]
            if classifier_rule(graph, position) and unsupported(graph, position, self.config):
                assert node.shape is not None
                shape = (self.config.num_classes, *node.shape[1:])
                nodes[position] = Node(node.type, node.name, shape, node.parameter, node.bias)
        return nodes

    def _blocks(
        self, x: Tensor, rule: str, shape: Sequence[int], slices: Slices | None
    ) -> Tensor:
        """Decoded blocks: at most as large as ``max_shape``, at most as large as needed."""
        if rule == "class_weight":
            return self._class_weight(x, shape, slices)
        if rule == "class_bias":
            return self.bias_class(self._vectors(x))[:, 1]
        if rule in ("bias", "norm_bias"):
            return self._vectors(x)[:, 1]
        if rule == "norm_weight":
            return self._vectors(x)[:, 0]
        wanted = shape_as_4d(shape)
        block = [min(size, most) for size, most in zip(wanted, self.config.max_shape, strict=True)]
        blocks = self._resize(self.decoder(x, block, slices), wanted)
        if rule == "pos_enc" and len(shape) == 3:
            return position_rows(blocks, shape[1])
        return blocks

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
