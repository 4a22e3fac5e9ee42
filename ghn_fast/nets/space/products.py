"""Which gates and attentions are nodes in the published graphs of DeepNets-1M networks.

The published graphs come from a walk over autograd's graph that recognises the product of
squeeze and excitation by what stands two places before it in topological order, and attention by
what stands eleven places before a copy. Whether these are the expected operations depends on
everything else that runs at the same depth of the network, so in some networks every gate is a
node and in others none is. This module rebuilds that order from the genotype alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ghn_fast.nets.space.genotypes import Genotype
from ghn_fast.nets.space.liveness import is_reduction, plan_network

Product = tuple[int, int]
"""A cell and the position of an operation in it."""


@dataclass(eq=False)
class _Op:
    """One autograd node, or the parameter that the walk puts in its place, and its inputs."""

    name: str
    inputs: list[_Op] = field(default_factory=list)
    product: Product | None = None
    sliced: bool = False
    """its result is a strided view, which has to be copied before it is reshaped"""


def published_products(
    genotype: Genotype,
    n_cells: int,
    stem_type: int = 0,
    stem_pool: bool = False,
    norm: str | None = "bnorm",
    preproc: bool = True,
) -> dict[Product, bool]:
    """For each gate and attention that is computed, in order, whether it is a node.

    Args:
        genotype: the cells; the other arguments are those of :class:`ghn_fast.nets.Network`.

    Returns:
        {(cell, position of the operation in it): whether it is a node}.
    """
    if not {"msa", "cse"} & set(genotype.operations):
        return {}
    has_norm = norm not in (None, "", "none")
    frozen = (
        tuple(genotype.normal),
        tuple(genotype.normal_concat),
        tuple(genotype.reduce),
        tuple(genotype.reduce_concat),
    )
    return dict(_products(frozen, n_cells, stem_type, stem_pool, has_norm, preproc))


@lru_cache(maxsize=1024)
def _products(
    frozen: tuple[Any, ...],
    n_cells: int,
    stem_type: int,
    stem_pool: bool,
    norm: bool,
    preproc: bool,
) -> tuple[tuple[Product, bool], ...]:
    genotype = Genotype(*(list(part) for part in frozen))
    plan = plan_network(genotype, n_cells)
    if plan is None:
        return ()
    kept = _recognised(_Builder(genotype, norm, preproc).network(n_cells, stem_type, stem_pool))
    products = [
        (cell, position)
        for cell, cell_plan in enumerate(plan.cells)
        if cell_plan is not None
        for position, (name, _) in enumerate(
            genotype.reduce if is_reduction(cell, n_cells) else genotype.normal
        )
        if name in ("msa", "cse") and cell_plan.operations[position]
    ]
    return tuple((product, product in kept) for product in products)


class _Builder:
    """The autograd graph of a network, as far as it decides the order."""

    def __init__(self, genotype: Genotype, norm: bool, preproc: bool) -> None:
        self.genotype = genotype
        self.norm = norm
        self.preproc = preproc
        self.attends = "msa" in genotype.operations

    def network(self, n_cells: int, stem_type: int, stem_pool: bool) -> _Op:
        """The output of the last cell; what follows comes later in any order."""
        s0, s1 = self._stem(stem_type, stem_pool)
        halved = stem_type == 1
        for cell in range(n_cells):
            reduction = is_reduction(cell, n_cells)
            output = self._cell(cell, s0, s1, reduction, halved and not self.attends)
            s0, s1 = s1, output
            halved = reduction
        assert s1 is not None
        return s1

    def _stem(self, stem_type: int, stem_pool: bool) -> tuple[_Op | None, _Op | None]:
        image = _Op("conv")
        if self.attends:
            encoded = _Op("pos_enc", [image])
            return encoded, encoded
        first = self._norm(image)
        if stem_type == 0:
            pooled = _Op("pool", [first]) if stem_pool else first
            return pooled, pooled
        # The activation that begins the second part is in place: both parts see it.
        second = _chain(self._norm(_chain(first, "relu", "conv")), "relu")
        return second, self._norm(_chain(second, "conv"))

    def _norm(self, x: _Op) -> _Op:
        return _Op("norm", [x]) if self.norm else x

    def _cell(
        self, cell: int, s0: _Op | None, s1: _Op | None, reduction: bool, halve: bool
    ) -> _Op | None:
        edges = self.genotype.reduce if reduction else self.genotype.normal
        concat = self.genotype.reduce_concat if reduction else self.genotype.normal_concat
        states = [self._preprocess(s0, halve), self._preprocess(s1, False)]
        for first in range(0, len(edges), 2):
            present = []
            for position in (first, first + 1):
                name, source = edges[position]
                strided = reduction and source < 2 and not self.attends
                term = self._operation(name, states[source], (cell, position), strided)
                present += [] if term is None else [term]
            sole = present[0] if present else None
            states.append(_Op("sum", present) if len(present) == 2 else sole)
        parts = [states[state] for state in concat]
        known = next((part for part in parts if part is not None), None)
        if known is None:
            return None
        zeros = _Op("Mul", [known])
        return _Op("cat", [zeros if part is None else part for part in parts])

    def _preprocess(self, x: _Op | None, halve: bool) -> _Op | None:
        if x is None:
            return None
        if not self.preproc:
            return _sliced(x) if halve else x
        return self._reduce(x) if halve else self._norm(_chain(x, "relu", "conv"))

    def _reduce(self, x: _Op) -> _Op:
        active = _chain(x, "relu")
        shifted = _chain(active, "slice", "slice", "conv")
        return self._norm(_Op("cat", [_chain(active, "conv"), shifted]))

    def _operation(self, name: str, x: _Op | None, product: Product, strided: bool) -> _Op | None:
        if x is None or name == "none":
            return None
        if name == "skip_connect":
            return self._reduce(x) if strided else x
        if name == "cse":
            return _gate(x, product, strided)
        if name == "msa":
            return _transformer(x, product)
        if "pool" in name:
            return _chain(x, "pool")
        if name.startswith("sep_conv"):
            half = self._norm(_chain(x, "relu", "conv", "conv"))
            return self._norm(_chain(half, "relu", "conv", "conv"))
        if name.startswith("dil_conv") or name == "conv_7x1_1x7":
            return self._norm(_chain(x, "relu", "conv", "conv"))
        return self._norm(_chain(x, "relu", "conv"))


def _chain(x: _Op, *names: str) -> _Op:
    for name in names:
        x = _Op(name, [x])
    return x


def _sliced(x: _Op) -> _Op:
    """Every second pixel in both directions."""
    result = _chain(x, "slice", "slice")
    result.sliced = True
    return result


def _reshaped(x: _Op) -> _Op:
    return _chain(x, "Clone", "view") if x.sliced else _chain(x, "view")


def _linear(x: _Op) -> _Op:
    """A linear layer on a matrix: its weight, then its bias."""
    return _Op("bias", [_Op("weight", [x])])


def _token_linear(x: _Op) -> _Op:
    return _chain(_linear(_chain(x, "view")), "view")


def _gate(x: _Op, product: Product, strided: bool) -> _Op:
    """Squeeze and excitation."""
    average = _chain(_reshaped(x), "mean")
    gate = _chain(_linear(_chain(_linear(average), "relu")), "Hard", "view")
    scaled = _Op("Mul", [x, gate], product)
    return _sliced(scaled) if strided else scaled


def _transformer(x: _Op, product: Product) -> _Op:
    """Attention and an MLP, each with a residual connection."""
    tokens = _chain(_reshaped(x), "permute")
    attended = _token_linear(_attention(_chain(tokens, "norm"), product))
    middle = _Op("sum", [attended, tokens])
    hidden = _chain(_token_linear(_chain(middle, "norm")), "gelu")
    return _chain(_Op("sum", [_token_linear(hidden), middle]), "permute", "view")


def _attention(tokens: _Op, product: Product) -> _Op:
    qkv = _chain(_Op("mm", [_Op("weight", [_chain(tokens, "view")])]), "view", "split")
    query, key, value = (
        _chain(qkv, "view", "permute", "unsqueeze", "permute", "permute", "view") for _ in range(3)
    )
    scores = _chain(_Op("bmm", [query, key]), "view", "permute", "view")
    weights = _chain(scores, "Mul", "Softmax", "unsqueeze", "permute", "permute", "view")
    mixed = _chain(_Op("bmm", [weights, value]), "view", "permute", "view", "permute")
    return _chain(_Op("Clone", [mixed], product), "view")


def _recognised(output: _Op) -> set[Product]:
    """The products that stand where the walk expects them."""
    kept = set()
    order = _topological(output)
    rest = []
    for place, op in enumerate(order):
        # Negative places wrap around, as they do in the published walk.
        recognised = op.name == "Mul" and order[place - 2].name == "Hard"
        if recognised and op.product is not None:
            kept.add(op.product)
        if op.name != "Mul" or recognised:
            rest.append(op)
    for place, op in enumerate(rest):
        if op.name == "Clone" and op.product is not None and rest[place - 11].name == "Softmax":
            kept.add(op.product)
    return kept


def _topological(output: _Op) -> list[_Op]:
    """Generations by longest path from the input, each in the order of a backward walk."""
    visited = _preorder(output)
    place = {id(op): i for i, op in enumerate(visited)}
    successors: list[list[int]] = [[] for _ in visited]
    missing = []
    for i, op in enumerate(visited):
        before = {place[id(x)] for x in op.inputs}
        missing.append(len(before))
        for j in before:
            successors[j].append(i)
    order: list[_Op] = [_Op("input")]
    generation = [i for i, count in enumerate(missing) if count == 0]
    while generation:
        following = []
        for i in generation:
            order.append(visited[i])
            if visited[i].name == "pos_enc":
                order.append(_Op("sum"))
            for j in successors[i]:
                missing[j] -= 1
                if missing[j] == 0:
                    following.append(j)
        generation = following
    return order


def _preorder(output: _Op) -> list[_Op]:
    """As the walk visits them: an operation, then its inputs from first to last.

    The walk meets a linear layer's bias, then the layer's input, then its weight.
    """
    visited: list[_Op] = []
    seen: set[int] = set()
    pending = [output]
    while pending:
        op = pending.pop()
        if id(op) in seen:
            continue
        seen.add(id(op))
        visited.append(op)
        weights = [x for x in op.inputs if x.name == "weight"]
        before = [y for x in weights for y in x.inputs] + weights if weights else op.inputs
        pending.extend(reversed(before))
    return visited
