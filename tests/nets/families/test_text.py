"""Networks that read pictures as text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.graph import LANGUAGE_NODE_TYPES, Graph
from ghn_fast.graph.types import CHANNEL_NODE_TYPES, NODE_TYPES
from ghn_fast.nets.families import sample_member
from ghn_fast.nets.families.attention import Rotation
from ghn_fast.nets.families.parts import Token
from ghn_fast.nets.families.text import Block, bert, gpt, llama
from ghn_fast.nets.families.words import Tables, Words

WIDTH, HEADS, HIDDEN, TOKENS, LAYERS = 32, 2, 64, 65, 2
CONFIG: dict[str, Any] = {"vocab_size": 100, "num_labels": 10, "pad_token_id": 0}


def body(block: Block, types: int = 0, positions: int = TOKENS) -> list[nn.Module]:
    tables = Tables(4, positions, WIDTH, types)
    norm = [nn.LayerNorm(WIDTH)] if block is bert else []
    blocks = (block(WIDTH, HEADS, HIDDEN, TOKENS) for _ in range(LAYERS))
    return [Words(4, 4), tables, *norm, *blocks]


def bert_like(types: int, activation: type[nn.Module]) -> nn.Module:
    head = nn.Linear(WIDTH, WIDTH), activation(), nn.Linear(WIDTH, 10)
    return nn.Sequential(*body(bert, types), Token(0), *head)


def gpt_like() -> nn.Module:
    head = nn.LayerNorm(WIDTH), Token(-1), nn.Linear(WIDTH, 10, bias=False)
    return nn.Sequential(*body(gpt), *head)


def llama_like() -> nn.Module:
    head = nn.RMSNorm(WIDTH), Token(-1), nn.Linear(WIDTH, 10, bias=False)
    return nn.Sequential(*body(llama, positions=0), *head)


OURS: dict[str, Any] = {
    "Bert": lambda: bert_like(2, nn.Tanh),
    "DistilBert": lambda: bert_like(0, nn.ReLU),
    "GPT2": gpt_like,
    "Llama": llama_like,
}
THEIRS: dict[str, dict[str, Any]] = {
    "Bert": {
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "intermediate_size": HIDDEN,
    },
    "DistilBert": {"n_layers": LAYERS, "dim": WIDTH, "n_heads": HEADS, "hidden_dim": HIDDEN},
    "GPT2": {
        "n_layer": LAYERS,
        "n_embd": WIDTH,
        "n_head": HEADS,
        "n_inner": HIDDEN,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "Llama": {
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "intermediate_size": HIDDEN,
    },
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("types", [NODE_TYPES, CHANNEL_NODE_TYPES, LANGUAGE_NODE_TYPES])
def test_graphs_are_those_of_transformers(name: str, types: tuple[str, ...]) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**CONFIG, **THEIRS[name])
    theirs = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    ours = OURS[name]()
    ours.expected_input_sz = 32
    graphs = [Graph.from_model(model, types=types) for model in (ours, theirs)]
    first, second = ([node.type for node in graph.nodes] for graph in graphs)
    assert first == second
    assert torch.equal(graphs[0].edges, graphs[1].edges)
    # GPT-2's are stored the other way round.
    shapes, same = ([sorted(n.shape or ()) for n in g.nodes if n.type == "conv"] for g in graphs)
    assert shapes == same


def test_words_are_the_colours_of_patches() -> None:
    images = torch.full((1, 3, 32, 32), -1.9)
    words = Words(8, 4)
    assert words(images).tolist() == [[0] + 16 * [1]]
    images[0, :, 8:16, :8] = 1.9
    images[0, 2, :8, 24:] = 0.1
    seen = words(images)[0].tolist()
    assert (seen[1 + 4], seen[1 + 3]) == (64, 3)
    assert sorted(set(seen)) == [0, 1, 3, 64]


def test_colours_beyond_all_have_words_too() -> None:
    words = Words(8, 4)(torch.randn(8, 3, 32, 32) * 100)
    assert int(words.min()) == 0
    assert int(words.max()) <= 4**3


def test_tables_are_as_large_as_those_of_bert() -> None:
    tables = Tables(6, TOKENS, 192)
    for table in (tables.words, tables.positions):
        assert table is not None
        assert 0.01 < table.weight.std() < 0.03


@pytest.mark.parametrize("name", OURS)
def test_the_order_of_words_matters(name: str) -> None:
    torch.manual_seed(0)
    model = OURS[name]()
    images = torch.randn(2, 3, 32, 32)
    images[1] = images[0].flip(2)
    first, second = Words(4, 4)(images)
    assert sorted(first.tolist()) == sorted(second.tolist())
    logits = model(images)
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)


@pytest.mark.parametrize(("block", "looks_ahead"), [(bert, True), (gpt, False), (llama, False)])
def test_causal_attention_does_not_look_ahead(block: Block, looks_ahead: bool) -> None:
    torch.manual_seed(0)
    layer = block(WIDTH, HEADS, HIDDEN, TOKENS)
    x = torch.randn(1, TOKENS, WIDTH)
    changed = x.clone()
    changed[:, 40:] = torch.randn(1, TOKENS - 40, WIDTH)
    before, after = layer(x), layer(changed)
    assert torch.allclose(before[:, :40], after[:, :40], atol=1e-6) != looks_ahead
    assert not torch.allclose(before[:, 40:], after[:, 40:], atol=1e-2)


def test_a_rotation_keeps_lengths_and_products_of_equal_distances() -> None:
    rotation = Rotation(9, 8)
    x, y = torch.randn(8), torch.randn(8)
    turned, other = (rotation(z.expand(1, 1, 9, 8))[0, 0] for z in (x, y))
    torch.testing.assert_close(turned.norm(dim=1), x.norm().expand(9))
    products = (turned[:-2] * other[2:]).sum(dim=1)
    torch.testing.assert_close(products, products[:1].expand(7))


def test_embeddings_keep_their_values() -> None:
    def kept(model: nn.Module) -> list[Tensor]:
        return [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]

    first = sample_member("families/val", 0, 0, family="text", max_work=50)
    again = sample_member("families/val", 0, 0, family="text", max_work=50, with_values=True)
    assert set(first.graph.other.values()) == {"embedding"}
    for table, same in zip(kept(first.model), kept(again.model), strict=True):
        assert not table.is_meta
        assert torch.equal(table, same)
