"""Why a parameter has no part in a model's output."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from ghn_fast.graph.trace.recorder import Parameter, Recorder

UNREACHED = "does not reach the output"
FROZEN = "requires_grad is False while other parameters are trained"
NOT_TAKEN = (
    "not used for this input: in a branch that was not taken, or an expert that was not routed to"
)
NOT_GIVEN = "not used for this input: it may be for items or for an argument that were not given"
AT_RANDOM = "not used in this run: the model leaves parts out at random"
GUESSED = "not used for the input that was guessed: pass example_inputs for all parts of the model"
TRAINING_ONLY = "used in training mode only"

MEANINGS: Mapping[str, str] = {
    UNREACHED: "no output depends on it, in evaluation or in training",
    FROZEN: "what the model's author froze keeps its value",
    NOT_TAKEN: "the model's course depends on values; another example would reach it",
    NOT_GIVEN: "the model has parts for each item of its input, or in each block for another input",
    AT_RANDOM: "stochastic depth that is at work in evaluation too",
    GUESSED: "a whole part, such as a text tower, did not run; an example of all inputs reaches it",
    TRAINING_ONLY: "the graph is that of evaluation, where other parts run",
}
"""What each reason stands for."""


def reasons(recorder: Recorder, parameters: Iterable[Parameter]) -> dict[str, str]:
    """Why no output depends on these parameters."""
    if recorder.random:
        otherwise = AT_RANDOM
    elif recorder.asked:
        otherwise = NOT_TAKEN
    else:
        otherwise = NOT_GIVEN if recorder.looped else UNREACHED
    found = {p.name: UNREACHED if recorder.is_used(p) else otherwise for p in parameters}
    if AT_RANDOM in found.values():
        found.update(dict.fromkeys(_in_no_block(recorder) & found.keys(), NOT_GIVEN))
    return found


def _in_no_block(recorder: Recorder) -> set[str]:
    """The parameters of a part that several blocks have and all ran without: not at random."""
    alike = defaultdict[str, list[str]](list)
    for parameter in recorder.parameters.values():
        alike[_NUMBER.sub("*", parameter.name)].append(parameter.name)
    used = {p.name for p in recorder.parameters.values() if recorder.is_used(p)}
    ran = {block for name in used for block in _blocks(name)}
    return {
        name
        for names in alike.values()
        if len(names) > 1 and used.isdisjoint(names) and all(ran & _blocks(n) for n in names)
        for name in names
    }


_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")
"""Of a block in a list."""


def _blocks(name: str) -> set[str]:
    return {name[: number.end()] for number in _NUMBER.finditer(name)}


def whole_parts(modules: Sequence[tuple[str, nn.Module]], unused: Iterable[str]) -> set[str]:
    """The unused parameters of the model's own parts of several layers none of which is used.

    And, beside such a part, what else of the model's own is not used: its table of positions, its
    last layer. Deeper down an unused part is the architecture's own, such as an operation of a
    cell whose result nothing reads.
    """
    missing = set(unused)
    found: set[str] = set()
    for prefix, module in modules:
        layers = [name for name, part in module.named_modules() if part._parameters]
        inside = {f"{prefix}.{name}" for name, _ in module.named_parameters()}
        if prefix and "." not in prefix and len(layers) > 1 and inside <= missing:
            found |= inside
    if found:
        every = (name for name, _ in modules[0][1].named_parameters())
        used = {_top(name) for name in every if name not in missing}
        found |= {name for name in missing if _top(name) not in used}
    return found


def _top(name: str) -> str:
    return name.partition(".")[0]
