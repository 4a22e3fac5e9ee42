"""The first layers of any network without their strides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.nets.families.ghosts import Ghosts
from ghn_fast.nets.families.parts import Concat, Residual
from ghn_fast.nets.space.strides import lower_strides


def halving(channels: int = 3, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, 2, kernel // 2)


class First(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0]


def last_map(model: nn.Module) -> tuple[int, ...]:
    dtype = next(model.parameters()).dtype
    return tuple(model(torch.zeros(2, 3, 32, 32, dtype=dtype)).shape[2:])


NETWORKS = {
    "convolutions": (lambda: nn.Sequential(*(halving() for _ in range(5))), 4),
    "pools": (
        lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AvgPool2d(2), *later()),
        4,
    ),
    "shortcuts": (
        lambda: nn.Sequential(
            Residual(halving(), nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 3, 1))),
            Residual(halving(kernel=5), nn.Conv2d(3, 3, 1, 2)),
            nn.MaxPool2d(2),
            *later(),
        ),
        4,
    ),
    "patches": (lambda: nn.Sequential(nn.Conv2d(3, 3, 4, 4), *(pair() for _ in range(3))), 3),
    "large enough": (lambda: nn.Sequential(*later(), *later()), 2 * 4),
    "a pool over the whole map": (
        lambda: nn.Sequential(*(halving() for _ in range(5)), nn.AdaptiveAvgPool2d(1)),
        1,
    ),
    "without padding": (lambda: nn.Sequential(*(nn.Conv2d(3, 3, 3, 2) for _ in range(6))), 5),
    "more than there are pixels": (lambda: nn.Sequential(*(pair() for _ in range(8))), 3),
    "in half precision": (lambda: nn.Sequential(*(halving() for _ in range(5))).bfloat16(), 4),
    "that gives places as well": (
        lambda: nn.Sequential(
            nn.MaxPool2d(2, return_indices=True), First(), *(halving() for _ in range(4))
        ),
        4,
    ),
}


def later() -> list[nn.Module]:
    return [halving()]


def pair() -> nn.Module:
    return nn.Conv2d(3, 3, 2, 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_images_leave_a_map_behind(name: str) -> None:
    make, size = NETWORKS[name]
    model = make()
    assert lower_strides(model, 32)
    assert last_map(model) == (size, size)
    settings = str(model)
    assert lower_strides(model, 32)  # once more changes nothing
    assert str(model) == settings


def test_only_as_many_lose_their_strides_as_have_to() -> None:
    model = nn.Sequential(*(halving() for _ in range(5)))
    lower_strides(model, 64)
    assert [layer.stride for layer in model] == [(1, 1), (2, 2), (2, 2), (2, 2), (2, 2)]


def test_layers_that_are_called_by_name() -> None:
    class ByName(nn.ModuleList):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self:
                x = layer(input=x)
            return x

    model = ByName(halving() for _ in range(5))
    assert lower_strides(model, 32)
    assert last_map(model) == (4, 4)


def test_weights_are_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 7, 2, 3), *(halving() for _ in range(4)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lower_strides(model, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Slices(nn.Module):
    """Halves its map by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2, ::2]


UNFIT = {
    "a table for one size": lambda: nn.Sequential(
        nn.Conv2d(3, 3, 16, 16), nn.Flatten(), nn.Linear(12, 10)
    ),
    "one patch": lambda: nn.Sequential(nn.Conv2d(3, 3, 32, 32)),
    "other ways to shrink": lambda: nn.Sequential(
        Concat(halving(), Slices()), nn.Conv2d(6, 3, 1), *(halving() for _ in range(4))
    ),
    "an output that would be another": lambda: nn.Sequential(
        *(halving() for _ in range(4)), nn.AvgPool2d(2), nn.Conv2d(3, 10, 1), nn.Flatten()
    ),
    "other images": lambda: nn.Sequential(nn.Conv2d(1, 3, 3, 32)),
    "no images": lambda: nn.Sequential(nn.Embedding(10, 3)),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_fitted_stays(name: str) -> None:
    model = UNFIT[name]()
    before = str(model)
    assert not lower_strides(model, 32)
    assert str(model) == before


def test_a_pool_over_the_whole_map_ends_no_map() -> None:
    model = nn.Sequential(halving(), halving(), nn.AvgPool2d(8), nn.Conv2d(3, 10, 1), nn.Flatten())
    before = str(model)
    assert lower_strides(model, 32)
    assert str(model) == before


class Caching(nn.Module):
    """Keeps a table for maps of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        if size not in self.tables:
            self.tables[size] = torch.ones(size, device=x.device)
        return x * self.tables[size]


def test_what_a_model_keeps_is_as_it_was() -> None:
    model = nn.Sequential(nn.utils.spectral_norm(halving()), Caching())
    weight = model[0].weight
    assert lower_strides(model, 32)
    assert model[0].weight is weight
    assert not model[1].tables


def test_modes_and_statistics_are_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, 16), nn.BatchNorm2d(3), nn.Dropout().eval())
    lower_strides(model, 32)
    assert [layer.training for layer in model] == [True, True, False]
    assert model[1].num_batches_tracked == 0
    assert not model[0]._forward_hooks


def test_shapes_are_enough() -> None:
    with Ghosts(seed=0):
        model = nn.Sequential(*(halving() for _ in range(5)), nn.BatchNorm2d(3))
    assert lower_strides(model, 32)
    assert model[0].stride == (1, 1)
