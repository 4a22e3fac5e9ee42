"""Handing predicted tensors over: tied parameters, errors, networks on the meta device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.ghn import GHN, ghn2
from ghn_fast.graph import Graph


class Tied(nn.Module):
    """Two layers that share their parameters, a token, and a module that is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias
        self.again = self.b
        self.token = nn.Parameter(torch.randn(1, 8))
        self.experts = nn.Parameter(torch.randn(2, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.b(self.a(x)).relu()) + torch.cat((self.token, self.token))
        logits: Tensor = self.fc(torch.einsum("bi,eio->beo", x, self.experts).mean(1))
        return logits


X = torch.zeros(2, 8)


@pytest.fixture
def ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2(max_shape=(16, 16, 3, 3)).train()


@pytest.mark.parametrize("leaves", [True, False])
def test_a_tied_parameter_gets_one_tensor_under_all_of_its_names(ghn: GHN, leaves: bool) -> None:
    model = Tied()
    graph = Graph.from_model(model, X)
    if leaves:
        found = ghn.attach_leaves([model], [graph])
    else:
        ghn(model, graph)
    assert model.a.weight is model.b.weight is model.again.weight
    assert model.a.bias is model.b.bias
    assert model.a.weight.requires_grad
    assert isinstance(model.token, nn.Parameter)
    model(torch.randn(2, 8)).square().sum().backward()
    if leaves:
        assert all(tensor.grad is not None for tensor in found.tensors)
    else:
        assert ghn.decoder.conv[0].weight.grad is not None


def test_without_gradients_values_are_written(ghn: GHN) -> None:
    model = Tied()
    graph, own = Graph.from_model(model, X), model.a.weight
    before = own.detach().clone()
    with torch.no_grad():
        ghn(model, graph)
    assert model.a.weight is model.b.weight is own
    assert not torch.equal(own, before)


@pytest.mark.parametrize("how", ["attach", "leaves", "write"])
def test_a_model_is_as_it_was_where_decoding_fails(
    ghn: GHN, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 7 GiB")

    monkeypatch.setattr(ghn, "_decode_groups", fail)
    model = Tied()
    own, values = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    graph = Graph.from_model(model, X)
    run = ghn.attach_leaves if how == "leaves" else ghn.train(how == "attach")
    with pytest.raises(torch.OutOfMemoryError):
        run([model], [graph])
    assert all(parameter is own[name] for name, parameter in model.named_parameters())
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("leaves", [True, False])
def test_a_network_on_the_meta_device_is_filled_where_it_is_not_decoded(
    ghn: GHN, leaves: bool
) -> None:
    graph = Graph.from_model(Tied(), X)
    with torch.device("meta"):
        model = Tied()
    if leaves:
        ghn.attach_leaves([model], [graph])
    else:
        ghn(model, graph)
    assert model(torch.randn(2, 8)).isfinite().all()
    assert model.experts.std().item() == pytest.approx(8**-0.5, rel=0.3)
    assert model.token.abs().max() <= 0.04
