"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (arXiv 2409.11321, algorithm 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

LARGEST_SIDE = 256
"""Sides of a matrix longer than this keep their basis."""


class SOAP(torch.optim.Optimizer):
    """AdamW that measures second moments in a rotated basis.

    The matrices of a GHN's decoder see features with a large common part, so that nearly all of
    their gradient lies in a few directions; Adam, which scales every entry alone, leaves the
    others almost untrained. Here each side of a matrix of at most ``LARGEST_SIDE`` rows or
    columns gets the eigenvectors of the average of G G^T or G^T G as its basis, brought up to
    date by one step of orthogonal iteration every ``basis_every`` steps. Convolutions count as
    matrices (out, everything else); vectors are updated as by AdamW. The first step only
    measures.

    Args:
        params: what to optimise.
        lr, weight_decay: as in AdamW.
        betas: decay of the averages of gradients, and of their squares.
        basis_beta: decay of the averages that the bases come from.
        basis_every: steps between updates of the bases.
        eps: added to the root of the second moments.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 1e-2,
        basis_beta: float = 0.98,
        basis_every: int = 10,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "basis_beta": basis_beta,
            "basis_every": basis_every,
            "eps": eps,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, self.state[parameter], group)
        return loss


def _update(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    gradient = _as_matrix(parameter.grad)
    if not state:
        _start(state, gradient)
        return
    beta1, beta2 = group["betas"]
    state["step"] += 1
    step = state["step"]
    mean, square = state["mean"], state["square"]
    mean.lerp_(gradient, 1 - beta1)
    rotated = _rotate(gradient, state)
    square.lerp_(rotated * rotated, 1 - beta2)
    scale = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
    update = _rotate_back(_rotate(mean, state) / scale, state)
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(update.view_as(parameter), alpha=-group["lr"] / (1 - beta1**step))
    _measure(state, gradient, group["basis_beta"])
    if step % group["basis_every"] == 0:
        _turn_bases(state)


def _as_matrix(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.flatten(1) if tensor.dim() > 1 else tensor


def _start(state: dict[str, Any], gradient: Tensor) -> None:
    """Zero moments, and the bases of the first gradient."""
    state["step"] = 0
    state["mean"] = torch.zeros_like(gradient)
    state["square"] = torch.zeros_like(gradient)
    if gradient.dim() < 2:
        return
    for side, size in zip(("rows", "columns"), gradient.shape, strict=True):
        if size <= LARGEST_SIDE:
            state[f"{side}_moment"] = gradient.new_zeros(size, size)
    _measure(state, gradient, 0.0)
    for side in _sides(state):
        state[f"{side}_basis"] = _eigenvectors(state[f"{side}_moment"])


def _eigenvectors(moment: Tensor) -> Tensor:
    """Of a symmetric matrix, in ascending order of their values.

    The moment of one gradient can have few directions, of which LAPACK finds no eigenvectors in
    single precision. Where it finds none at all, the axes serve: the bases turn anyway.
    """
    exact = moment.double()
    try:
        found = torch.linalg.eigh(exact / exact.abs().max().clamp_min(1e-300)).eigenvectors
    except torch.linalg.LinAlgError:
        return torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return found.to(moment.dtype)


def _sides(state: dict[str, Any]) -> list[str]:
    return [side for side in ("rows", "columns") if f"{side}_moment" in state]


def _measure(state: dict[str, Any], gradient: Tensor, beta: float) -> None:
    """Moves the averages of G G^T and G^T G on."""
    for side in _sides(state):
        square = gradient @ gradient.T if side == "rows" else gradient.T @ gradient
        state[f"{side}_moment"].lerp_(square, 1 - beta)


def _turn_bases(state: dict[str, Any]) -> None:
    """One step of orthogonal iteration towards the eigenvectors, those of large values first.

    Multiplied by the moment, a vector of a small value is mostly rounding errors along those of
    large ones. Behind them it is freed of these; before them it would take their place, with a
    second moment far too small for it. Second moments move with their vectors.
    """
    for side in _sides(state):
        basis = state[f"{side}_basis"]
        turned = state[f"{side}_moment"] @ basis
        order = (basis * turned).sum(dim=0).argsort(descending=True, stable=True)
        state["square"] = state["square"].index_select(0 if side == "rows" else 1, order)
        state[f"{side}_basis"] = torch.linalg.qr(turned[:, order]).Q


def _rotate(matrix: Tensor, state: dict[str, Any]) -> Tensor:
    if "rows_basis" in state:
        matrix = state["rows_basis"].T @ matrix
    return matrix @ state["columns_basis"] if "columns_basis" in state else matrix


def _rotate_back(matrix: Tensor, state: dict[str, Any]) -> Tensor:
    if "rows_basis" in state:
        matrix = state["rows_basis"] @ matrix
    return matrix @ state["columns_basis"].T if "columns_basis" in state else matrix
