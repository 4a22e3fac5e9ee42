"""Whether a value, of JSON or of a caller, is of the type that is written down for it."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, get_args, get_origin


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, or one of those that are listed.

    JSON has lists for tuples, and writes 1.0 as 1.
    """
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:
        return any(is_of(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is tuple:
        is_list = isinstance(value, list | tuple)
        has_length = is_list and (parts[-1] is Ellipsis or len(value) == len(parts))
        return has_length and all(is_of(item, parts[0]) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)
