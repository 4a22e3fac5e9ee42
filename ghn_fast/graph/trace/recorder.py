"""Records what a model does with its parameters while it runs, without doing the arithmetic.

The model runs once, in Python, under a :class:`torch.overrides.TorchFunctionMode`. Every tensor
that depends on an input or a parameter is a tensor on the meta device (a shape without values)
that carries the number of the record that made it; what depends on neither is computed for real,
so that masks, positions and indices have their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property, lru_cache
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from ghn_fast.graph.layout import Layout
from ghn_fast.graph.node import Node
from ghn_fast.graph.trace.written import memory_of
from ghn_fast.graph.types import NODE_TYPES

_CONSTANT = -1
_PUBLISHED = {"rmsnorm": "ln"}
_numbers = count()
_CPU, _META = torch.device("cpu"), torch.device("meta")
LARGE = 1 << 20
"""Elements; constants above are known by their shape only, so that they take no memory."""
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_PLAIN = frozenset((type(None), bool, int, float, str, torch.dtype))
"""Types of most arguments, told from tensors by what they are, as asking for more costs time."""


class Kind(IntEnum):
    """What becomes of a record in the graph."""

    CONTRACT = 0  # its inputs are joined to its outputs
    KEEP = 1  # a node
    JOIN = 2  # a node if at least two of its operands come from nodes, and from different ones


class NeedsValues(Exception):
    """The model asked for the values of a tensor that has only a shape."""


class AsksValues(NeedsValues):
    """It did so in plain words, such as ``if x.sum() > 0``."""


class Hidden(Exception):
    """A tensor came from a call that was not seen, such as one in a scripted function."""


class Output(NamedTuple):
    """The first of a model's outputs.

    Attributes:
        record: that made it.
        values: how many an example has.
    """

    record: int
    values: int


@dataclass(eq=False, slots=True)
class Parameter:
    """A parameter of the model and what the recorder knows about it.

    Attributes:
        node: its record as a weight or bias of a layer.
        source: its record as a tensor that takes part in a computation.
        role: what it looks like when no layer uses it.
        folded: it is the bias of this normalisation weight's record.
    """

    name: str
    tensor: Tensor
    module: nn.Module
    node: int | None = None
    source: int | None = None
    role: str | None = None
    folded: int | None = None


class Place(NamedTuple):
    """Sizes and strides of what lies in a parameter's memory."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class Records:
    """The data flow, one entry a record, in the order of execution.

    Attributes:
        nodes: for records that may become nodes, what they become.
        flags: marks that rules leave for other rules, such as "average" and "softmax".
        maps: for flattened maps, how a linear layer's weight is a convolution's over the map.
        static: depends on parameters only, not on an input.
        sourceless: a node that has no edge from the input, such as a position table.
    """

    kinds: list[int] = field(default_factory=list)
    parents: list[tuple[int, ...]] = field(default_factory=list)
    nodes: list[Node | None] = field(default_factory=list)
    static: list[bool] = field(default_factory=list)
    flags: dict[int, str] = field(default_factory=dict)
    maps: dict[int, Layout] = field(default_factory=dict)
    sourceless: set[int] = field(default_factory=set)


Func = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Handler = Callable[["Recorder", Func, Args, Kwargs], Any]
"""How a call is read: with the function and its arguments, to its result."""
Rules = dict[Callable[..., Any] | str, Handler]


def bind(names: Sequence[str], args: Args, kwargs: Kwargs) -> list[Any]:
    """Arguments by position or name, None where not given."""
    return [*args, *(kwargs.get(name) for name in names[len(args) :])][: len(names)]


class Recorder(TorchFunctionMode):
    """The mode under which a model runs to have its data flow recorded.

    Attributes:
        inside: a call is being read.
        taken: the records of values that became arrays or numbers.
        asked: the model's course may depend on values of its inputs or activations.
        scaled: {record: the products with a parameter that it is, or is a sum of}.
        branches: those of these products that are added to something else.
        after: what else is done with the result of a call (:mod:`ghn_fast.graph.trace.channels`).
        random: and on random numbers.
        looped: the model takes its input apart, item by item.

    Args:
        modules: the model's, with their names.
        own: the tensors that the model holds; they and the parameters are known by identity.
        handlers: the rules, by the function they apply to, or the name of an operator.
        execute: run every operation for real instead of working out shapes. For models whose
            course depends on the values of activations.
        products: for each gate and attention, in order of execution, whether it is a node.
        types: that nodes may have.
    """

    def __init__(
        self,
        modules: Sequence[tuple[str, nn.Module]],
        own: Sequence[Tensor],
        handlers: Rules,
        execute: bool = False,
        products: Iterable[bool] = (),
        types: Sequence[str] = NODE_TYPES,
    ) -> None:
        super().__init__()
        self.handlers = handlers
        self.execute = execute
        self.types = types
        self.records = Records()
        self.parameters: dict[int, Parameter] = {}
        self.opaque = 0
        self.inside = False
        self.taken: list[int] = []
        self.asked = self.random = self.looped = False
        self.scaled: dict[int, frozenset[int]] = {}
        self.branches: set[int] = set()
        self._written: dict[int, tuple[Tensor, int]] = {}
        self._products = iter(products)
        # Marks on tensors are this recorder's own: a tensor may outlive it in some cache.
        self._number = next(_numbers)
        self._id, self._stale = self.mark("record"), self.mark("stale")
        self.after: Callable[[Func, Args, Kwargs, Any], Any] | None = None
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self._converted: dict[int, tuple[Tensor, Parameter]] = {}
        self._transformed: dict[int, tuple[Tensor, int]] = {}
        self._parts: dict[int, tuple[Tensor, list[Tensor]]] = {}
        self._factors: dict[int, tuple[Tensor, float]] = {}
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}
        self._originals: dict[int, Tensor] = {}
        self._register(modules)
        self._owned: dict[int, int | None] = dict.fromkeys(map(id, own))
        self._own = own
        self.output: Output | None = None
        self.device = next((p.tensor.device for p in self.parameters.values()), _CPU)
        self._on_meta = self.device.type == "meta"
        self.input = self.add(Kind.KEEP, (), Node("input", "input"))

    def _register(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        for prefix, module in modules:
            for name, tensor in module._parameters.items():
                if tensor is not None and id(tensor) not in self.parameters:
                    full_name = f"{prefix}.{name}" if prefix else name
                    self.parameters[id(tensor)] = Parameter(full_name, tensor, module)

    def mark(self, what: str) -> str:
        """The name of an attribute of this recorder's own."""
        return f"_ghn_fast_{what}_{self._number}"

    # --- records ---------------------------------------------------------------------------

    def add(self, kind: Kind, parents: Iterable[int], node: Node | None = None) -> int:
        """Appends a record and returns its number."""
        records = self.records
        number = len(records.kinds)
        unique = tuple(dict.fromkeys(parents))
        records.kinds.append(int(kind))
        records.parents.append(unique)
        records.nodes.append(node)
        static = kind is not Kind.KEEP and bool(unique)
        records.static.append(static and all(records.static[p] for p in unique))
        return number

    def merge(self, parents: Iterable[int]) -> int:
        """The record of a value that depends on several others in a way no rule names."""
        unique = tuple(dict.fromkeys(parents))
        return unique[0] if len(unique) == 1 else self.add(Kind.CONTRACT, unique)

    def known_type(self, node_type: str) -> str:
        """The node type, or what stands for it where nodes may not have it."""
        return node_type if node_type in self.types else _PUBLISHED.get(node_type, node_type)

    def flag(self, parents: Iterable[int], mark: str) -> int:
        """A contracted record that other rules look for."""
        number = self.add(Kind.CONTRACT, parents)
        self.records.flags[number] = mark
        return number

    def source(self, parameter: Parameter) -> int:
        """The record of a parameter that enters a computation as an ordinary tensor."""
        if parameter.node is not None:
            return parameter.node
        if parameter.source is None:
            parameter.source = self.add(Kind.CONTRACT, ())
            self.records.static[parameter.source] = True
        return parameter.source

    def record_of(self, tensor: Tensor) -> int | None:
        """The record that made a tensor; None if it depends on no input and no parameter."""
        parameter = self.parameters.get(id(tensor))
        if parameter is not None:
            return self.source(parameter)
        if id(tensor) in self._owned:
            return self._owned[id(tensor)]
        number = getattr(tensor, self._id, None)
        if self._written:
            number = self._through_base(tensor, number)
        if number is None and hasattr(tensor, "__tensor_flatten__"):
            number = self._through_wrapper(tensor)
        elif number is None and is_functorch_wrapped_tensor(tensor):
            number = self._through_transform(tensor)
        elif number is None and self.execute:
            _, number = self._transformed.get(memory_of(tensor), (tensor, None))
            number = self.outside() if number is None else number
            setattr(tensor, self._id, number)
        elif number is None and tensor.is_meta and not self._on_meta:
            raise Hidden("a tensor comes from a call that cannot be seen")
        return None if number == _CONSTANT else number

    def _through_wrapper(self, tensor: Any) -> int:
        """Of a tensor of a class that wraps others, such as quantised values and their scale."""
        names, _ = tensor.__tensor_flatten__()
        inner = self.records_in([getattr(tensor, name) for name in names])
        number = self.merge(inner) if inner else _CONSTANT
        setattr(tensor, self._id, number)
        return number

    def _through_transform(self, tensor: Tensor) -> int | None:
        """Of a tensor inside a transform of ``torch.func``, such as ``vmap``."""
        number = self.record_of(get_unwrapped(tensor))
        if number is not None:
            self._note_transformed(tensor, number)
        return number

    def _note_transformed(self, tensor: Tensor, number: int) -> None:
        """Notes the record of what a transform wraps, as that leaves it without a call."""
        if number != _CONSTANT and not self.execute:
            raise Hidden("what leaves a transform of torch.func comes from no call")
        while is_functorch_wrapped_tensor(tensor):
            tensor = get_unwrapped(tensor)
        self._transformed[memory_of(tensor)] = tensor, number

    def outside(self) -> int:
        """The record of a tensor made of what is no tensor, such as an array of numpy.

        It depends on all values that the model has taken out of tensors so far.
        """
        return self.merge(self.taken) if self.taken else _CONSTANT

    def _through_base(self, tensor: Tensor, number: int | None) -> int | None:
        """Of a view: also what was written into its memory through another view."""
        written = None if tensor._base is None else self._written.get(id(tensor._base))
        if written is None or number == written[1]:
            return number
        return written[1] if number in (None, _CONSTANT) else self.merge((number, written[1]))

    def parameter_of(self, value: Any) -> Parameter | None:
        """The parameter that a value is, itself and not something made from it."""
        return self.parameters.get(id(value))

    def parameter_in_place_of(self, tensor: Tensor) -> Parameter | None:
        """The parameter that a tensor is, or is detached from, as scripted code does."""
        behind = self.parameters_behind(tensor)
        if len(behind) != 1 or behind[0].tensor.shape != tensor.shape:
            return None
        own = behind[0].tensor
        is_own = tensor is own or _shares_memory(tensor, own if self.execute else self.fake(own))
        return behind[0] if is_own else None

    def parameter_viewed(self, tensor: Tensor) -> Parameter | None:
        """The parameter whose values a tensor has, in whatever shape and type."""
        behind = self.parameters_behind(tensor)
        if len(behind) != 1 or behind[0].tensor.numel() != tensor.numel():
            return None
        own = behind[0].tensor
        if tensor is own or _shares_memory(tensor, own if self.execute else self.fake(own)):
            return behind[0]
        _, parameter = self._converted.get(memory_of(tensor), (tensor, None))
        return parameter

    def note_conversion(self, source: Tensor, result: Tensor) -> None:
        """Notes that a tensor may have a parameter's values in another type."""
        if self.is_static(self.record_of(source)) and result is not source:
            parameter = self.parameter_viewed(source)
            if self._factors:
                self.note_factor(source, result, 1.0)
            if parameter is not None:
                self._converted[memory_of(result)] = result, parameter

    def note_factor(self, source: Tensor, result: Tensor, factor: float) -> None:
        """Notes that a tensor may be a parameter's values times a constant."""
        known = self._factor(source)
        if known is not None:
            self._factors[memory_of(result)] = result, known * factor
            self.note_copy(source, result)

    def factor_of(self, weight: Tensor) -> float:
        """The constant by which a parameter was multiplied to make a weight."""
        return (self._factor(weight) or 1.0) if self._factors else 1.0

    def _factor(self, tensor: Tensor) -> float | None:
        """The same; None for what is not known to be a parameter's values times a constant."""
        memory = memory_of(tensor)
        if memory in self._factors:
            return self._factors[memory][1]
        if memory in self._copies:
            return self._factor(self._copies[memory][1])
        return None if self.parameter_viewed(tensor) is None else 1.0

    def is_static(self, number: int | None) -> bool:
        """Whether a record depends on parameters only."""
        return number is not None and self.records.static[number]

    def parameters_behind(self, tensor: Tensor) -> list[Parameter]:
        """The parameters that a tensor is made of, largest first.

        Empty if it is also made of inputs, or is a product of matrices, as none of these is it,
        and inside ``vmap``, where it is one slice of them along any dimension.
        """
        parameter = self.parameter_of(tensor)
        if parameter is not None:
            return [parameter]
        start = self.record_of(tensor)
        sliced = is_batchedtensor(tensor)
        if start is None or sliced or not self.records.static[start]:
            return []
        ancestors, pending = {start}, [start]
        while pending:
            current = pending.pop()
            if self.records.flags.get(current) == "factors":
                return []
            for parent in self.records.parents[current]:
                if parent not in ancestors:
                    ancestors.add(parent)
                    pending.append(parent)
        found = [p for p in self.parameters.values() if p.source in ancestors]
        return sorted(found, key=lambda p: -p.tensor.numel())

    def all_used(self) -> bool:
        """Whether every parameter has taken part in the computation so far."""
        parameters = self.parameters.values()
        return not [p for p in parameters if p.node is p.source is p.folded is None]

    @staticmethod
    def is_used(parameter: Parameter) -> bool:
        """Whether a parameter has taken part in the computation so far."""
        return not parameter.node is parameter.source is parameter.folded is None

    def tag(self, value: Any, number: int) -> Any:
        """Notes on every tensor in a result which record made it."""
        if isinstance(value, Tensor):
            if id(value) in self._owned:
                self._owned[id(value)] = None if number == _CONSTANT else number
            elif id(value) not in self.parameters:
                setattr(value, self._id, number)
                if is_functorch_wrapped_tensor(value):
                    self._note_transformed(value, number)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self.tag(item, number)
        elif isinstance(value, dict):
            for item in value.values():
                self.tag(item, number)
        return value

    def tensors_in(self, value: Any) -> list[Tensor]:
        """All tensors in nested arguments, in order."""
        found: list[Tensor] = []
        _collect((value,), found)
        return found

    def records_in(self, *values: Any) -> list[int]:
        """The records of all tensors in nested arguments, in order, without those of None."""
        return self._records_of(self.tensors_in(values))

    def _records_of(self, tensors: Iterable[Tensor]) -> list[int]:
        return [number for number in map(self.record_of, tensors) if number is not None]

    def product(self, parents: Iterable[int], node: Node) -> int:
        """The record of a gated value or of attention.

        A model may say for each of them in turn, as an attribute ``graph_products``, whether it is
        a node: the published graphs of DeepNets-1M leave many out.
        """
        return self.add(Kind.KEEP if next(self._products, True) else Kind.CONTRACT, parents, node)

    # --- results ---------------------------------------------------------------------------

    def fresh(self, shape: Sequence[int], number: int, dtype: torch.dtype) -> Tensor:
        """A tensor without values, made by a record."""
        tensor = torch.empty(tuple(shape), dtype=dtype, device=_META)
        setattr(tensor, self._id, number)
        return tensor

    def fake(self, tensor: Tensor) -> Tensor:
        """The tensor without its values."""
        if tensor.is_meta and id(tensor) not in self.parameters:
            return tensor
        known = self._twins.get(id(tensor))
        if known is None:
            twin = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
            )
            known = self._twins[id(tensor)] = (tensor, twin)
            self._originals[id(twin)] = tensor
        return known[1]

    def note_copy(self, source: Tensor, copy: Tensor) -> None:
        """Notes that values of a parameter may have been copied into another order."""
        if not self.is_static(self.record_of(source)):
            return
        source = source if self.execute else self.fake(source)
        if not _shares_memory(copy, source):
            self._copies[memory_of(copy)] = copy, source

    def note_parts(self, whole: Tensor, parts: Iterable[Tensor]) -> None:
        """Notes that a tensor is a concatenation of parameters or of what is made of them."""
        self._parts[id(whole)] = whole, list(parts)

    def parts_of(self, tensor: Tensor) -> list[Tensor]:
        """What a tensor is a concatenation of, if each is made of parameters; else none."""
        _, parts = self._parts.get(id(tensor), (tensor, []))
        return parts if all(self.parameters_behind(part) for part in parts) else []

    def place_in(self, parameter: Parameter, tensor: Tensor) -> Place | None:
        """Where what is made of a parameter lies in that parameter's memory; None if unknown.

        Views lie there, and what has as many elements (in another type, standardised), and rows
        that were looked up or converted.
        """
        own = parameter.tensor
        if tensor is own or _shares_memory(tensor, own if self.execute else self.fake(own)):
            return Place(tensor.shape, tensor.stride())
        if sorted(tensor.shape) == sorted(own.shape) or self._is_copy(tensor):
            return Place(tensor.shape, self._strides_before_copies(tensor))
        if tensor.shape[1:] == own.shape[1:]:
            return Place(own.shape, own.stride())
        first = own.dim() - tensor.dim()
        rows = first > 0 and tensor.shape == own.shape[first:]
        return Place(tensor.shape, own.stride()[first:]) if rows else None

    def _is_copy(self, tensor: Tensor) -> bool:
        return memory_of(tensor) in self._copies

    def _strides_before_copies(self, tensor: Tensor) -> tuple[int, ...]:
        """Strides in the memory of what was copied; 0 where dimensions were merged or split."""
        if not self._is_copy(tensor):
            return tensor.stride()
        base, source = self._copies[memory_of(tensor)]
        inner = {}
        if source.shape == base.shape:
            steps = zip(base.shape, base.stride(), self._strides_before_copies(source), strict=True)
            inner = {copied: own for size, copied, own in steps if size > 1}
        return tuple(inner.get(stride, 0) for stride in tensor.stride())

    def emit(
        self,
        number: int,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        like: Tensor,
        shape: Callable[..., Sequence[int]],
        *shape_args: Any,
    ) -> Any:
        """The result of an operation that a rule has recorded as ``number``."""
        if self.execute:
            return self.tag(self.run(func, args, kwargs), number)
        return self.fresh(shape(*shape_args), number, like.dtype)

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operation, on values or on shapes."""
        if self.execute:
            return func(*args, **kwargs)
        originals: dict[int, Tensor] = {}
        try:
            result = func(*self._faked(args, originals), **self._faked(kwargs, originals))
        except (NotImplementedError, RuntimeError) as error:
            if any(map(self._is_number, self.tensors_in((args, kwargs)))):
                return self.run(func, self._with_numbers(args), self._with_numbers(kwargs))
            raise NeedsValues(f"{name_of(func)} on shapes: {error}") from error
        if originals and isinstance(result, Tensor):
            # An operation in place returns what it was given.
            return originals.get(id(result), result)
        return result

    def _is_number(self, value: Any) -> bool:
        """Whether a tensor is a known number, such as a size."""
        return isinstance(value, Tensor) and value.dim() == 0 and self.known(value)

    def _with_numbers(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            items = map(self._with_numbers, value)
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, dict):
            return {key: self._with_numbers(item) for key, item in value.items()}
        return value.item() if self._is_number(value) else value

    def _faked(self, value: Any, originals: dict[int, Tensor]) -> Any:
        """Arguments without values; notes what stands for which tensor."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            twin = self.fake(value)
            if twin is not value:
                originals[id(twin)] = value
            return twin
        if isinstance(value, (tuple, list)):
            items = [self._faked(item, originals) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, dict):
            return {key: self._faked(item, originals) for key, item in value.items()}
        return torch.device("meta") if isinstance(value, torch.device) else value

    # --- the mode --------------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.inside = True
        try:
            return self.read(func, args, kwargs or {})
        finally:
            self.inside = False

    def read(self, func: Func, args: Args, kwargs: Kwargs) -> Any:
        """The result of a call, recorded."""
        handler = self.handlers.get(func) or self.rule_of(func)
        result = handler(self, func, args, kwargs)
        return result if self.after is None else self.after(func, args, kwargs, result)

    def rule_of(self, func: Callable[..., Any]) -> Handler:
        """How calls of a function or an operator are read."""
        handler = self.handlers.get(func)
        if handler is None and isinstance(func, _OPERATORS):
            handler = self.handlers.get(_operator(func))
        return handler or Recorder.generic

    def generic(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """An operation without a rule: what it returns depends on everything it is given."""
        tensors = self.tensors_in((args, kwargs))
        parents = self._records_of(tensors)
        if not parents:
            return self._constant(func, args, kwargs, tensors)
        known = self._all_known(tensors)
        result = self._performed(func, args, kwargs, known)
        number = self.merge(parents)
        if self.scaled and all(parent in self.scaled for parent in parents):
            self.scaled[number] = frozenset().union(*(self.scaled[parent] for parent in parents))
        for changed in self.tensors_in(_mutated(func, args, kwargs)):
            if known:
                self.tag(changed, number)
            else:
                self.mutate(changed, number)
        return self.tag(result, number)

    def perform(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Runs an operation on values where all are known, but not on the model's own tensors."""
        return self._performed(func, args, kwargs, self.known(args, kwargs))

    def _performed(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], known: bool
    ) -> Any:
        if not known:
            return self.run(func, args, kwargs)
        mutated = _mutated(func, args, kwargs)
        if any(map(self.owns, self.tensors_in(mutated))):
            return mutated
        return func(*args, **kwargs)

    def known(self, *values: Any) -> bool:
        """Whether an operation on these is done on values: none of them is only a shape.

        Token ids and masks are inputs whose values steer the model; they stay known.
        """
        return self._all_known(self.tensors_in(values))

    def _all_known(self, tensors: Iterable[Tensor]) -> bool:
        """Whether all are small and have values, which are not a parameter's."""
        return not self.execute and not any(
            self.shape_only(tensor) or tensor.numel() > LARGE or id(tensor) in self.parameters
            for tensor in tensors
        )

    def shape_only(self, tensor: Tensor) -> bool:
        """Whether a tensor's values are not known: it never had any, or they were replaced."""
        return tensor.is_meta or getattr(tensor, self._stale, False)

    def _constant(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> Any:
        """An operation on neither inputs nor parameters is done for real, but for counters."""
        mutated = _mutated(func, args, kwargs)
        changed = self.tensors_in(mutated)
        if any(map(self.owns, changed)):
            return mutated
        if not self.execute and any(map(self.shape_only, tensors)):
            for tensor in changed:
                self._replaced(tensor, _CONSTANT)
                if tensor._base is not None:
                    self._replaced(tensor._base, _CONSTANT)
            return self.large_constant(func, args, kwargs)
        result = func(*args, **kwargs)
        return self.constant(result) if self.execute else result

    def constant(self, value: Any) -> Any:
        """A value that depends on no input and no parameter."""
        return self.tag(value, _CONSTANT)

    def large_constant(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The result, without values, of an operation on neither inputs nor parameters."""
        return self.tag(self.run(func, args, kwargs), _CONSTANT)

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor is the model's, or lies in the memory of one."""
        return id(tensor) in self._owned or memory_of(tensor) in self._own_memory

    @cached_property
    def _own_memory(self) -> set[int]:
        """Where the model's tensors lie: ``.data`` and ``.detach()`` of one do not name it."""
        return set(map(memory_of, self._own))

    def mutate(self, target: Tensor, number: int) -> None:
        """An operation in place: the tensor, and what it is a view of, change their record."""
        self._replaced(target, number)
        base = target._base
        if base is not None:
            base = self._originals.get(id(base), base)
            # What an operation made on its way to a view has no mark, and nobody else sees it.
            old = self.record_of(base) if self._is_known(base) else None
            whole = number if old is None else self.merge((old, number))
            self._replaced(base, whole)
            self._written[id(base)] = base, whole

    def _is_known(self, tensor: Tensor) -> bool:
        owned = id(tensor) in self.parameters or id(tensor) in self._owned
        return owned or hasattr(tensor, self._id)

    def _replaced(self, target: Tensor, number: int) -> None:
        self.tag(target, number)
        if not self.execute and not target.is_meta and not self.owns(target):
            setattr(target, self._stale, True)


def _collect(values: Iterable[Any], found: list[Tensor]) -> None:
    """Appends all tensors in nested arguments."""
    for value in values:
        if type(value) in _PLAIN:
            continue
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            _collect(value, found)
        elif isinstance(value, dict):
            _collect(value.values(), found)


def _mutated(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tensor, or the tensors, that a function changes; None if there is none."""
    return args[0] if args and in_place(func) else kwargs.get("out")


@lru_cache(maxsize=4096)
def in_place(func: Callable[..., Any]) -> bool:
    """Whether a function changes its first argument."""
    name = name_of(func)
    # The latter is that of attributes, such as ``data``.
    return name in ("__setitem__", "__set__") or (name.endswith("_") and not name.endswith("__"))


@lru_cache(maxsize=4096)
def _operator(func: Callable[..., Any]) -> str:
    """ "aten.add" for ``torch.ops.aten.add`` and for all its overloads."""
    return ".".join(str(func).split(".")[:2])


@lru_cache(maxsize=4096)
def name_of(func: Callable[..., Any]) -> str:
    """Of a function, or of an operator without its overload ("add_" of ``aten.add_.Tensor``)."""
    return (getattr(func, "__name__", "") or str(func)).partition(".")[0]


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    return memory_of(a) == memory_of(b)
