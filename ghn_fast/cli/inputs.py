"""What to call a model with, by the options of the command line."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ghn_fast.cli.errors import UsageError

_LARGEST_EXAMPLE = 2**28
"""Numbers in it, of which a gigabyte is taken."""

_OPTIONS = (
    "pass the shape of one example as --input (3x64x64), how many token ids as --input-ids, or "
    "anything else in Python: ghn_fast.predict(model, example_inputs=...)"
)


def make_inputs(
    model: nn.Module, shape: str | None, token_ids: int | None
) -> dict[str, Tensor] | tuple[Tensor, ...] | None:
    """What to call a model with, by the options of the command line; None without any.

    Args:
        model: gets both under the names that it has for them, else images before token ids.
        shape: of one example, such as ``3x64x64``.
        token_ids: how many.

    Raises:
        UsageError: a shape that is none, or an example that is too large.
    """
    from ghn_fast.graph.trace.guess import Maker

    maker = Maker(model, batch=2, device=None)
    inputs: dict[str, Tensor] = {}
    if shape is not None:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
            raise UsageError(f"--input is the shape of one example, such as 3x64x64, not {shape!r}")
        sizes = [int(size) for size in shape.split("x")]
        _check_size(math.prod(sizes), f"--input {shape}")
        inputs["pixel_values"] = maker.zeros(*sizes)
    if token_ids is not None:
        _check_size(token_ids, f"--input-ids {token_ids}")
        inputs["input_ids"] = maker.ids(maker.vocabulary, token_ids)
    if not inputs:
        return None
    named = inputs.keys() <= inspect.signature(model.forward).parameters.keys()
    return inputs if named else tuple(inputs.values())


@contextmanager
def advice_by_options() -> Iterator[None]:
    """Where a model cannot be run, the options are named rather than the library's argument."""
    from ghn_fast.graph import TraceError
    from ghn_fast.graph.trace.tracer import ADVICE

    try:
        yield
    except TraceError as error:
        raise UsageError(str(error).replace(ADVICE, _OPTIONS)) from error


def _check_size(numbers: int, option: str) -> None:
    if numbers > _LARGEST_EXAMPLE:
        raise UsageError(f"{option}: an example has at most {_LARGEST_EXAMPLE:,} numbers")
