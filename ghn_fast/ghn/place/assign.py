"""The hand-over of predicted tensors to models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ghn_fast.ghn.place.decoded import Decoded
from ghn_fast.ghn.place.fill import Loose, value_of
from ghn_fast.ghn.place.follow import has_small_scale, magnitudes, settle_spectral_norms
from ghn_fast.ghn.place.keep import FOLLOWS, NO_NODE, RAISED, filled
from ghn_fast.ghn.place.leaves import Leaves
from ghn_fast.ghn.place.plan import Plan
from ghn_fast.ghn.place.uses import Uses

How: TypeAlias = Literal["write", "attach", "fill"]
"""``write``: values go into the models' own parameters; what is not decoded keeps the value it
has. ``fill``: the same, but what is not decoded gets a value too (:mod:`ghn_fast.ghn.place.fill`).
``attach``: the tensors themselves, with their gradients, take the parameters' places."""


def assign(
    uses: Sequence[Uses], plan: Plan, decoded: Decoded | Leaves, how: How
) -> list[dict[str, str]]:
    """Gives models their predicted parameters, and what has to follow from these.

    A tied parameter gets its tensor under all of its names. All that is decoded is made before the
    first of it is handed over: where memory runs out, the models are as they were.

    Args:
        uses: of the models.
        plan: of the batch.
        decoded: what the GHN decoded by the plan.
        how: see :data:`How`. Parameters on the meta device have no value to keep: with ``attach``
            they are filled.

    Returns:
        For each model {parameter name: what was done to it} of what was set without being decoded.
    """
    targets = decoded.targets
    if how == "attach":
        tensors = decoded.tensors() if isinstance(decoded, Decoded) else decoded.tensors
        for target, tensor in zip(targets, tensors, strict=True):
            _attach(uses[target.graph], target.parameter, tensor)
    else:
        assert isinstance(decoded, Decoded)
        decoded.write([uses[t.graph].parameters[t.parameter] for t in targets])
    names: list[list[str]] = [[] for _ in uses]
    for target in targets:
        names[target.graph].append(target.parameter)
    return [
        _settle(known, plan, index, names[index], how, decoded.device)
        for index, known in enumerate(uses)
    ]


def _settle(
    uses: Uses, plan: Plan, index: int, decoded: Sequence[str], how: How, device: torch.device
) -> dict[str, str]:
    """Gives the other parameters of one model of a plan what they need."""
    kept, kinds, stacks = plan.kept[index], plan.kinds[index], plan.stacks[index]
    identities = {id(uses.parameters[name]) for name in decoded}
    others = [names[0] for identity, names in uses.names.items() if identity not in identities]

    def lacks(name: str) -> bool:
        """Whether a parameter has no value worth keeping."""
        if how == "attach":
            return uses.parameters[name].is_meta
        return how == "fill" and (name not in uses.kept or name in uses.empty)

    free = [name for name in others if kept.get(name, NO_NODE) == NO_NODE or lacks(name)]
    values = magnitudes(uses, free, decoded)
    done = dict.fromkeys(values, FOLLOWS)
    raised = {
        name
        for name, kind in kinds.items()
        if plan.raised_layer_scales and kind == "layer_scale" and name not in uses.kept
    }
    for name in others:
        parameter = uses.parameters[name]
        if name in values or parameter.numel() == 0:
            continue
        if lacks(name) or (name in raised and has_small_scale(parameter)):
            loose = Loose(name, parameter.shape, uses.owners[name][0], stacks.get(name))
            rule, value = value_of(loose, kinds.get(name))
            values[name] = value.to(device, parameter.dtype)
            done[name] = filled(rule, kept.get(name, NO_NODE)) if lacks(name) else RAISED
    for name, value in values.items():
        if how == "attach":
            _attach(uses, name, value)
        else:
            uses.parameters[name].copy_(value)
    if how != "attach":
        settle_spectral_norms(uses, decoded)
    return done


def _attach(uses: Uses, name: str, tensor: Tensor) -> None:
    for module, own in uses.places(name):
        module._parameters[own] = tensor  # type: ignore[assignment]
