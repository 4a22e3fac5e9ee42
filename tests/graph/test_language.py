"""Graphs of language models with LoGAH's node types."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from networkx.algorithms.isomorphism import categorical_node_match
from torch import Tensor, nn

from ghn_fast.graph import LANGUAGE_NODE_TYPES, Graph

ENTRIES = ("gpt2_l2_c96", "llama_l2_c96", "gpt2_l2_c96_tied")
TOKENS = {"input_ids": torch.tensor([[1, 2, 3]])}


class Rotated(nn.Module):
    """One head whose queries are rotated, and a gated MLP behind an RMS norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.query, self.key = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.norm = nn.RMSNorm(8)
        self.gate, self.up = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 16, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        query = self.query(x)
        half = torch.cat((-query[..., 4:], query[..., :4]), dim=-1)
        angles = torch.arange(tokens.shape[1]).float()[:, None]
        query = query * angles.cos() + half * angles.sin()
        x = x + (query @ self.key(x).mT).softmax(dim=-1) @ x
        x = self.norm(x)
        return self.head(nn.functional.silu(self.gate(x)) * self.up(x))


def types(graph: Graph) -> Counter[str]:
    return Counter(node.type for node in graph.nodes)


def test_published_types_know_nothing_of_it() -> None:
    found = types(Graph.from_model(Rotated(), torch.tensor([[1, 2, 3]])))
    assert found["ln"] == 1
    assert not set(found) & {"rmsnorm", "rot_emb", "gate"}


def test_language_types() -> None:
    graph = Graph.from_model(Rotated(), torch.tensor([[1, 2, 3]]), LANGUAGE_NODE_TYPES)
    found = types(graph)
    assert (found["rmsnorm"], found["rot_emb"], found["gate"], found["ln"]) == (1, 1, 1, 0)
    assert found["concat"] == 0
    assert found["sum"] == 1  # of the residual; the rotation is one node
    assert graph.node_types.max() == LANGUAGE_NODE_TYPES.index("gate")


def test_a_layer_norm_written_out_stays_one() -> None:
    class LayerNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            x = x - x.mean(-1, keepdim=True)
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True)) * self.weight + self.bias

    model = nn.Sequential(nn.Linear(8, 8), LayerNorm(), nn.Linear(8, 4))
    found = types(Graph.from_model(model, torch.zeros(2, 8), LANGUAGE_NODE_TYPES))
    assert (found["ln"], found["rmsnorm"], found["gate"]) == (1, 0, 0)


def build(construct: str) -> nn.Module:
    """The model of a conformance entry, which says how it is made in Python."""
    transformers = pytest.importorskip("transformers")
    kinds = re.search(r"transformers\.(\w+)\(transformers\.(\w+)\((.*)\)\)", construct)
    assert kinds is not None
    options: dict[str, Any] = {}
    for name, value in re.findall(r"(\w+)=([\w']+)", kinds[3]):
        options[name] = {"True": True, "False": False}.get(value, value.strip("'"))
        if value.isdecimal():
            options[name] = int(value)
    return getattr(transformers, kinds[1])(getattr(transformers, kinds[2])(**options)).eval()


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_graph_of_the_public_code(shared: Path, entry: str) -> None:
    content = json.loads((shared / "conformance" / "logah.json").read_text())
    expected = content[f"logah_tiny_lm/{entry}"]
    graph = Graph.from_model(build(expected["construct"]), TOKENS, LANGUAGE_NODE_TYPES)
    ours, theirs = nx.DiGraph(graph.edges.tolist()), nx.DiGraph(expected["edges"])
    ours.add_nodes_from((index, {"type": int(t)}) for index, t in enumerate(graph.node_types))
    theirs.add_nodes_from(
        (index, {"type": node_type}) for index, (node_type, _) in enumerate(expected["node_list"])
    )
    assert nx.is_isomorphic(ours, theirs, categorical_node_match("type", None))
    assert int((graph.distances > 0).sum()) == expected["edges_all"]
    assert int(graph.distances.sum(dtype=torch.int64)) == expected["dist_sum"]
