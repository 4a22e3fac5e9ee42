"""Texts of transformers' models in which tokens stand for the images and sounds beside them.

How many tokens an image takes only the model knows: as many as its own ``get_image_features``
gives features. That is run first, with what it is found to run with, as the model is afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast.graph.trace.configured import HEARD, pictures, texts
from ghn_fast.graph.trace.guess import GRID, Call, Guess, Maker
from ghn_fast.graph.trace.search import Search

RunMethod = Callable[[Callable[..., Any], Call, bool], Any]
"""Runs a method of the model, for real or on shapes."""

_KINDS = {
    "image": ("vision_config", 1),
    "audio": ("audio_config", 3),
    "video": ("vision_config", 2),
}
"""What may be shown: the configuration of the part that looks at it, and its number where words
are 0."""
_NUMBERS = "mm_token_type_ids"


@dataclass
class Shown:
    """What the model is given beside texts.

    Attributes:
        inputs: by their names.
        count: of the features that a text's share of them has.
        token: that stands for each.
        number: of its kind.
    """

    inputs: Mapping[str, Any]
    count: int
    token: int
    number: int


def placeholder_guesses(maker: Maker, run_method: RunMethod) -> Iterator[Guess]:
    """Of all kinds at once, then of each; a film is shown where there are no images."""
    config: Any = maker.model.config
    tokens = {kind: token for kind in _KINDS if (token := _token(config, kind)) is not None}
    shown: list[Shown] = []
    for kind, token in tokens.items():
        if kind != "video" or "image" not in tokens:
            shown += _shown(maker, kind, token, run_method)
    for group in (shown, *([one] for one in shown if len(shown) > 1)):
        if group:
            yield Guess(partial(_reading, maker, group, [*tokens.values()]), (16, 64))


def _token(config: Any, kind: str) -> int | None:
    names = (f"{kind}_token_id", f"{kind}_token_index")
    return next((t for name in names if isinstance(t := getattr(config, name, None), int)), None)


def _shown(maker: Maker, kind: str, token: int, run_method: RunMethod) -> list[Shown]:
    method = getattr(maker.model, f"get_{kind}_features", None)
    if method is None:
        return []
    config = maker.model.config
    name, number = _KINDS[kind]
    part = getattr(config, name, None)
    parts = (m for m in maker.modules if type(getattr(m, "config", None)) is type(part))
    tower: nn.Module | None = next(parts, None) if part is not None else None
    modules = list(tower.modules()) if tower is not None else maker.modules
    looking = Maker(maker.model, maker.batch, maker.device, modules, thin=maker.thin, method=method)
    search = Search(
        lambda call, real: _count(run_method(method, call, real)), lambda: True, for_real=0
    )
    found = search.first(_looks(looking, config))
    if found is None:
        return []
    (args, others), count = found
    inputs = dict(zip(looking.names, args, strict=False)) | others
    return [Shown(inputs, count // maker.batch, token, number)]


def _looks(maker: Maker, config: Any) -> Iterator[Guess]:
    """What the method that gives features may be called with."""
    first = next(iter(maker.names), "")
    if any(name.endswith(GRID) for name in maker.names):
        yield from maker.patches()
    elif first in HEARD:
        yield from HEARD[first](maker, config, {})
    else:
        yield from pictures(maker, config, first)


def _count(features: Any) -> int:
    """Of vectors in what a method returned."""
    for name in ("pooler_output", "last_hidden_state"):
        if getattr(features, name, None) is not None:
            return _count(getattr(features, name))
    if isinstance(features, Tensor):
        return features.numel() // features.shape[-1]
    return sum(map(_count, features.values() if isinstance(features, Mapping) else features))


def _reading(maker: Maker, group: list[Shown], tokens: list[int], length: int) -> Call:
    inputs = texts(maker, maker.model.config, length)
    ids = inputs["input_ids"]
    words = ids[:, ~torch.isin(ids[0], torch.tensor(tokens, device=ids.device))]
    marks = [ids.new_full((len(ids), shown.count), shown.token) for shown in group]
    inputs["input_ids"] = torch.cat([*marks, words], 1)
    if _NUMBERS in maker.names:
        kinds = [ids.new_full((len(ids), shown.count), shown.number) for shown in group]
        inputs[_NUMBERS] = torch.cat([*kinds, torch.zeros_like(words)], 1)
    for shown in group:
        inputs.update(shown.inputs)
    return (), inputs
