"""The GHN's forward pass on CUDA tensors without values, which need no GPU.

All that is made is on the device, by operations that have a fake implementation for it; reading a
value, for which the host would have to wait, is an error there.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ghn_fast.ghn import GHN, ghn1, ghn2, make_plan
from ghn_fast.ghn.place.block_table import make_block_table
from ghn_fast.graph import Graph, GraphBatch
from ghn_fast.ops import gated_gnn
from ghn_fast.ops.backends import HAS_TRITON
from ghn_fast.ops.tile import tile


def network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


def has_fake_cuda() -> bool:
    """Not where PyTorch was built without CUDA, nor in PyTorch 2.6, which asks for a driver."""
    try:
        with FakeTensorMode(), torch.device("cuda"):
            nn.Linear(2, 2)
    except (AssertionError, RuntimeError):
        return False
    return True


@pytest.mark.skipif(not has_fake_cuda(), reason="needs fake CUDA tensors that need no driver")
@pytest.mark.parametrize("make", [ghn1, ghn2])
def test_forward_pass_stays_on_the_device(
    make: Callable[[], GHN], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pinning memory has no fake implementation.
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
    models = [network(8), network(96)]
    graphs = [Graph.from_model(model, torch.zeros(1, 3, 8, 8)) for model in models]
    batch = GraphBatch(graphs)
    plan = make_plan(batch, make().config, models)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            ghn = make().train()
        table = make_block_table(plan, ghn.config)
        embeddings = ghn.node_embeddings(batch)
        expected = "triton" if HAS_TRITON else "reference"
        assert gated_gnn.default_backend(embeddings) == expected
        parameters = tile(ghn.blocks(embeddings, table), table.tiles)
    assert {tensor.device.type for tensor in (embeddings, *parameters)} == {"cuda"}
    assert [p.shape for p in parameters] == [tile.shape for tile in table.tiles.tiles]
    assert all(parameter.requires_grad for parameter in parameters)
