"""A reason that is given for a parameter without a part in the output is true."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.graph.trace.tracer import trace
from ghn_fast.graph.trace.unused import (
    AT_RANDOM,
    GUESSED,
    NOT_GIVEN,
    NOT_TAKEN,
    TRAINING_ONLY,
    UNREACHED,
)
from tests.graph.test_trace import Runs

PARAMETERS = ("weight", "bias")


def test_layer_that_is_never_called() -> None:
    model = Runs(lambda model, x: model.a(x), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    assert trace(model, torch.zeros(2, 4)).unused == {"b.weight": UNREACHED, "b.bias": UNREACHED}


def test_branch_on_values_that_was_not_taken() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        dropped = model.c(x)
        return model.a(x) if dropped.sum() < 1e9 else model.b(x)

    model = Runs(run, **{name: nn.Linear(4, 4, bias=False) for name in "abc"})
    assert trace(model, torch.zeros(2, 4)).unused == {"b.weight": NOT_TAKEN, "c.weight": UNREACHED}


def test_branch_on_token_ids_that_was_not_taken() -> None:
    def run(model: Runs, ids: Tensor) -> Tensor:
        x = model.tokens(ids)
        return model.a(x) if ids.max() < 5 else model.b(x)

    parts = {"tokens": nn.Embedding(8, 4), "a": nn.Linear(4, 2), "b": nn.Linear(4, 2)}
    assert set(trace(Runs(run, **parts), torch.zeros(2, 3).long()).unused.values()) == {NOT_TAKEN}


@pytest.mark.parametrize("loop", [False, True])
def test_experts_that_were_not_routed_to(loop: bool) -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        chosen = model.router(x).argmax(-1)
        out = torch.zeros(x.shape[0], 2)
        for number in chosen.unique().tolist() if loop else range(3):
            rows = (chosen == number).nonzero().flatten()
            if len(rows):
                out = out.index_add(0, rows, model.experts[number](x[rows]))
        return out

    experts = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
    model = Runs(run, router=nn.Linear(4, 3), experts=experts)
    with torch.no_grad():
        model.router.weight.zero_()
        model.router.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    unused = trace(model, torch.zeros(2, 4)).unused
    if loop:
        assert set(unused.values()) == {NOT_TAKEN}
        assert {name.rpartition(".")[0] for name in unused} == {"experts.0", "experts.2"}
    else:
        assert not unused, "on shapes every expert may be chosen"


def test_stochastic_depth() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        for block in model.blocks:
            x = x + block(x) if random.random() < model.keep else x
        return model.head(x)

    blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    model = Runs(run, blocks=blocks, head=nn.Linear(4, 2))
    model.keep = 0.0
    unused = trace(model, torch.zeros(2, 4)).unused
    assert len(unused) == 6
    assert set(unused.values()) == {AT_RANDOM}


class Decoder(nn.Module):
    """Blocks with attention to what may not be there, and depth that is random in training."""

    def __init__(self) -> None:
        super().__init__()
        names = ("own", "cross")
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(4, 4) for name in names}) for _ in range(2)
        )

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            if random.random() < 0.0:
                continue
            x = block["own"](x)
            x = x if other is None else x + block["cross"](other)
        return x


@pytest.mark.parametrize(("inputs", "why"), [(None, GUESSED), (torch.zeros(2, 4), NOT_GIVEN)])
def test_what_no_block_runs_is_not_left_out_at_random(inputs: Tensor | None, why: str) -> None:
    unused = trace(Decoder(), inputs).unused
    assert unused == {f"blocks.{i}.cross.{name}": why for i in (0, 1) for name in PARAMETERS}


class PerImage(nn.Module):
    """A layer for each of several images."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 8, 3) for _ in range(3))
        self.last = nn.Linear(8, 10)

    def forward(self, images: list[Tensor]) -> Tensor:
        maps = [layer(x) for layer, x in zip(self.layers, images, strict=False)]
        return self.last(torch.stack(maps).mean((0, -2, -1)))


def test_a_loop_over_an_input_that_was_guessed() -> None:
    assert trace(PerImage()).unused == {f"layers.2.{name}": GUESSED for name in PARAMETERS}
    assert not trace(PerImage(), ([torch.zeros(2, 3, 8, 8)] * 3,)).unused


class Noisy(nn.Module):
    """A weight with noise, whose strength is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.sigma = (nn.Parameter(torch.rand(10, 8)) for _ in range(2))

    @property
    def weight(self) -> Tensor:
        if not self.training:
            return self.mu
        return self.mu + self.sigma * torch.randn_like(self.sigma)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def test_parameter_of_training_behind_a_property() -> None:
    result = trace(Noisy(), torch.zeros(2, 8))
    assert not result.unused
    assert result.other == {"sigma": "weight_gain"}


def in_training(module: nn.Module) -> bool:
    return module.training


def test_helper_that_reads_the_mode() -> None:
    def run(model: Runs, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = model.a(x)
        return (y, model.auxiliary(x)) if in_training(model) else y

    model = Runs(run, a=nn.Linear(4, 2), auxiliary=nn.Linear(4, 2)).eval()
    assert not trace(model, torch.zeros(2, 4)).unused


def test_each_mode_has_parts_of_its_own() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        return model.a(x) if in_training(model) else model.b(x)

    model = Runs(run, a=nn.Linear(4, 2, bias=False), b=nn.Linear(4, 2, bias=False))
    assert trace(model, torch.zeros(2, 4)).unused == {"a.weight": TRAINING_ONLY}


class TwoTowers(nn.Module):
    """Of images and, if there is any, of text."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.text = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
        self.idle = nn.Linear(4, 4, bias=False)

    def forward(self, image: Tensor, text: Tensor | None = None) -> Tensor:
        x = self.image(image)
        return x if text is None else x @ self.text(text).mean(1).T


def test_part_that_a_guess_left_out() -> None:
    unused = trace(TwoTowers()).unused
    assert "idle.weight" in unused, "which nobody can tell from a layer of the other tower's"
    assert set(unused.values()) == {GUESSED}
    given = trace(TwoTowers(), (torch.zeros(2, 3, 8, 8), torch.zeros(2, 5).long()))
    assert given.unused == {"idle.weight": UNREACHED}
