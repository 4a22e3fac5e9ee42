"""What the public codes predict from checkpoints made of a seed (see tests/public_facts.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn
from torchvision import models

from ghn_fast.checkpoint import load_ghn
from ghn_fast.ghn import GHN
from ghn_fast.graph import Graph
from ghn_fast.nets import Network, adjust_net
from tests import public_facts
from tests.test_conformance import assert_same_graph

FACTS = json.loads(Path(__file__).with_name("public_facts.json").read_text())


@pytest.fixture(scope="module")
def ghn_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], GHN]:
    """Loads a checkpoint of a kind, once."""
    made: dict[str, GHN] = {}

    def load(kind: str) -> GHN:
        if kind not in made:
            made[kind] = load_ghn(public_facts.write_checkpoint(kind, tmp_path_factory.mktemp("x")))
        return made[kind]

    return load


def build(kind: str, name: str) -> nn.Module:
    if name in public_facts.DEEPNETS:
        return Network(num_classes=10, is_imagenet_input=False, **public_facts.DEEPNETS[name])
    if kind == "ghn2":
        return adjust_net(models.get_model(name, num_classes=10))
    return models.get_model(name)


def test_facts_are_of_all_models() -> None:
    named = {f"{kind}/{name}" for kind, names in public_facts.TORCHVISION.items() for name in names}
    assert set(FACTS) == named | {f"ghn2/{name}" for name in public_facts.DEEPNETS}


@pytest.mark.parametrize("entry", FACTS)
def test_predicts_what_the_public_code_predicts(entry: str, ghn_of: Callable[[str], GHN]) -> None:
    expected, (kind, _, name) = FACTS[entry], entry.partition("/")
    ghn, model = ghn_of(kind), build(kind, name)
    graph = Graph.from_model(model)
    assert_same_graph(graph, expected)
    embedding = float(ghn.embed(graph).norm())
    assert embedding == pytest.approx(expected["embedding_mean_norm"], rel=1e-5)
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    ghn(model, graph)
    parameters = dict(model.named_parameters())
    assert len(expected["params"]) > 0.85 * len(parameters)
    for parameter, (count, norm, dot) in expected["params"].items():
        found = public_facts.measured(parameter, parameters[parameter])
        assert found[0] == count, parameter
        assert found[1:] == pytest.approx([norm, dot], abs=1e-4 * norm + 1e-6, rel=0), parameter
