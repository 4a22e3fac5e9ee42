from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.train.soap import LARGEST_SIDE, SOAP


def loss_after(make: type[torch.optim.Optimizer], steps: int, **settings: float) -> float:
    """Least squares with features that have a large common part, as after a ReLU."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(512, 24, generator=generator) + 10 * torch.rand(24, generator=generator)
    targets = features @ torch.randn(24, 16, generator=generator)
    weight = nn.Parameter(torch.zeros(16, 24))
    optimizer = make([weight], **settings)
    for step in range(steps):
        batch = slice(step * 32 % 512, step * 32 % 512 + 32)
        optimizer.zero_grad()
        (features[batch] @ weight.T - targets[batch]).square().mean().backward()
        optimizer.step()
    return (features @ weight.T - targets).square().mean().item()


def test_learns_faster_than_adam_where_features_have_a_common_part() -> None:
    settings = {"lr": 0.02, "weight_decay": 0.0}
    assert loss_after(SOAP, 300, **settings) < 0.3 * loss_after(torch.optim.AdamW, 300, **settings)


def test_vectors_are_updated_as_by_adamw() -> None:
    """From the second step on: the first only measures."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(5, generator=generator) for _ in range(4)]

    def after(make: type[torch.optim.Optimizer], used: list[Tensor]) -> Tensor:
        vector = nn.Parameter(torch.ones(5))
        optimizer = make([vector], lr=0.1, betas=(0.9, 0.98), weight_decay=0.1)
        for gradient in used:
            vector.grad = gradient.clone()
            optimizer.step()
        return vector.detach()

    torch.testing.assert_close(after(SOAP, gradients), after(torch.optim.AdamW, gradients[1:]))


def test_bases_stay_orthogonal_and_long_sides_have_none() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(LARGEST_SIDE + 1, 6, 1, 1))
    optimizer = SOAP([weight], basis_every=2)
    for _ in range(9):
        weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    state = optimizer.state[weight]
    assert "rows_basis" not in state
    basis = state["columns_basis"]
    torch.testing.assert_close(basis @ basis.T, torch.eye(6))


def test_turning_the_bases_keeps_updates_short() -> None:
    """Gradients that nearly all lie in a few directions, as those of a decoder."""
    generator = torch.Generator().manual_seed(0)
    spectrum = 10.0 ** -torch.linspace(0, 6, 64)
    left, right = (torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q for _ in range(2))
    weight = nn.Parameter(torch.zeros(64, 64))
    optimizer = SOAP([weight], lr=1.0, weight_decay=0.0, basis_every=5)
    lengths = []
    for _ in range(40):
        noise = torch.randn(64, 64, generator=generator)
        weight.grad = left @ (spectrum[:, None] * noise * spectrum) @ right.T
        before = weight.detach().clone()
        optimizer.step()
        lengths.append((weight.detach() - before).norm().item())
    assert max(lengths[2:]) < 2 * max(lengths[2:6])


def test_goes_on_from_its_state() -> None:
    def steps(optimizer: SOAP, weight: nn.Parameter, numbers: range) -> None:
        for number in numbers:
            weight.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(number))
            optimizer.step()

    whole = nn.Parameter(torch.ones(4, 6))
    steps(SOAP([whole], basis_every=2), whole, range(8))
    first = nn.Parameter(torch.ones(4, 6))
    optimizer = SOAP([first], basis_every=2)
    steps(optimizer, first, range(5))
    second = nn.Parameter(first.detach().clone())
    resumed = SOAP([second], basis_every=2)
    resumed.load_state_dict(optimizer.state_dict())
    steps(resumed, second, range(5, 8))
    assert torch.equal(second, whole)


def test_starts_from_a_gradient_of_few_directions() -> None:
    """Single precision finds no eigenvectors of some such moments."""
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-18, 1e-6, 1.0):
        for rank in (0, 1, 2, 5):
            left, right = torch.randn(2, 200, rank, generator=generator) * scale**0.5
            weight = nn.Parameter(torch.zeros(200, 200))
            optimizer = SOAP([weight])
            for _ in range(2):
                weight.grad = left @ right.T
                optimizer.step()
            assert weight.isfinite().all()
            for side in ("rows", "columns"):
                basis = optimizer.state[weight][f"{side}_basis"]
                torch.testing.assert_close(basis @ basis.T, torch.eye(200), rtol=0, atol=1e-4)


def test_starts_without_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(matrix: Tensor) -> Tensor:
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    weight = nn.Parameter(torch.zeros(3, 2))
    weight.grad = torch.ones(3, 2)
    optimizer = SOAP([weight])
    optimizer.step()
    assert torch.equal(optimizer.state[weight]["rows_basis"], torch.eye(3))
