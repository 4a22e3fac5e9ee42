"""Recurrent layers are recurrent layers, however they are run and however long the sequence is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.graph.trace.tracer import Trace, trace

LENGTHS = [7, 5, 2]
SHAPES: list[torch.Size] = []
"""Of what the last recurrent layer gave."""
ROLES = {"recurrent_weight", "recurrent_bias"}


class Classifier(nn.Module):
    """Reads sequences of 3 values; ``look`` makes its course depend on what it has read."""

    def __init__(self, layer: nn.RNNBase, packed: bool = False, look: bool = False) -> None:
        super().__init__()
        self.rnn, self.packed, self.look = layer, packed, look
        self.head = nn.Linear(layer.hidden_size * (1 + layer.bidirectional), 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            x = nn.utils.rnn.pack_padded_sequence(
                x, torch.tensor(LENGTHS), batch_first=self.rnn.batch_first
            )
        y, states = self.rnn(x)
        if self.packed:
            y, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=self.rnn.batch_first)
        if self.look and y.sum() > 1e9:
            y = y + 1
        states = states if isinstance(states, tuple) else (states,)
        SHAPES[:] = [y.shape, *(state.shape for state in states)]
        return self.head(y)


LAYERS = {
    "LSTM": lambda: nn.LSTM(3, 5, 2, bidirectional=True, batch_first=True),
    "projected": lambda: nn.LSTM(3, 5, proj_size=4),
    "GRU": lambda: nn.GRU(3, 5),
    "RNN": lambda: nn.RNN(3, 5, nonlinearity="relu", bias=False),
}


def assert_recurrent(result: Trace, model: nn.Module) -> None:
    assert set(result.other.values()) <= ROLES
    assert set(result.other) == {
        name for name, _ in model.named_parameters() if not name.startswith("head")
    }
    assert not result.unused


@pytest.mark.parametrize("look", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_layers(name: str, packed: bool, look: bool) -> None:
    layer = LAYERS[name]()
    model = Classifier(layer, packed, look)
    x = torch.rand(3, 7, 3) if layer.batch_first else torch.rand(7, 3, 3)
    result = trace(model, x)
    assert_recurrent(result, model)
    assert [node.name for node in result.nodes] == ["input", "head.weight", "head.bias"]
    traced = list(SHAPES)
    model(x)
    assert traced == SHAPES


@pytest.mark.parametrize("name", LAYERS)
def test_layer_as_the_whole_model(name: str) -> None:
    layer = LAYERS[name]()
    for x in (torch.zeros(2, 5, 3), torch.zeros(5, 3)):
        result = trace(layer, x)
        assert_recurrent(result, layer)
        assert [node.type for node in result.nodes] == ["input"]
        assert result.edges.shape == (0, 2)


class Script(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def test_scripted_layer() -> None:
    model = torch.jit.script(Script())
    for length in (3, 30):
        result = trace(model, torch.zeros(length, 2, 3))
        assert_recurrent(result, model)
        assert len(result.nodes) == 3


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(cell: type[nn.RNNCellBase]) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = cell(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for step in x:
                state = self.cell(step, state)
            return self.head(state[0] if isinstance(state, tuple) else state)

    model = Steps()
    for length in (2, 20):
        result = trace(model, torch.zeros(length, 2, 3))
        assert_recurrent(result, model)
        assert len(result.nodes) == 3
