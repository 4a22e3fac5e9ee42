"""DeepNets-1M networks: stem, cells of a genotype, classifier (arXiv 2110.13100, section 3.1)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast._system.collection import uncollected
from ghn_fast.nets.space.adjust import adjust_net
from ghn_fast.nets.space.genotypes import Genotype, from_dict
from ghn_fast.nets.space.liveness import CellPlan, is_reduction, plan_network
from ghn_fast.nets.space.operations import (
    FactorizedReduce,
    PositionEncoding,
    ReLUConvNorm,
    Subsample,
    make_norm,
    make_operation,
)
from ghn_fast.nets.space.products import published_products

Build = Callable[..., Any]
"""Called as build(factory, *arguments) to create a module: fresh, or a ghost of it."""


def _fresh(factory: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    return factory(*arguments)


class Cell(nn.Module):
    """One cell: sums of pairs of operations, some of which are concatenated."""

    preprocess0: nn.Module
    preprocess1: nn.Module
    _ops: nn.ModuleList
    _sources: list[int]
    _plan: CellPlan | None

    def __init__(
        self,
        edges: list[tuple[str, int]],
        plan: CellPlan | None,
        preprocess: tuple[nn.Module, nn.Module],
        operations: list[nn.Module],
    ) -> None:
        super().__init__()
        ops = nn.ModuleList()
        # Into the tables themselves: what an assignment checks of each module is a tenth of the
        # time that a ghost takes.
        ops._modules.update(zip(map(str, range(len(operations))), operations, strict=True))
        self._modules.update(preprocess0=preprocess[0], preprocess1=preprocess[1], _ops=ops)
        self.__dict__.update(_sources=[source for _, source in edges], _plan=plan)

    def forward(self, s0: Tensor | None, s1: Tensor | None) -> Tensor | None:
        plan = self._plan
        if plan is None:
            return None
        states = [
            module(x) if used else None
            for module, x, used in zip(
                (self.preprocess0, self.preprocess1), (s0, s1), plan.inputs, strict=True
            )
        ]
        for first in range(0, len(self._ops), 2):
            terms = [
                self._ops[i](states[self._sources[i]])
                for i in (first, first + 1)
                if plan.operations[i]
            ]
            states.append(terms[0] + terms[1] if len(terms) == 2 else (terms or [None])[0])
        return self._concat(states, plan)

    @staticmethod
    def _concat(states: list[Tensor | None], plan: CellPlan) -> Tensor | None:
        parts = [None if state is None else states[state] for state in plan.concat]
        if any(part is None for part in parts):
            # A state that 'none' cut off still takes its channels.
            zeros = next(part for part in parts if part is not None) * 0
            parts = [zeros if part is None else part for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)  # type: ignore[arg-type]


class Network(nn.Module):
    """A network of the DeepNets-1M design space.

    Parameters have the names that the published graphs and checkpoints use. Parts whose result
    cannot reach the output (because of `none` operations or states that nobody reads) exist, so
    that parameter counts agree with the published ones, but are not computed.

    Args:
        C: channels of the first cells.
        num_classes: outputs.
        genotype: the cells, a `Genotype` or its dictionary form.
        n_cells: number of cells; those at one and two thirds reduce the resolution.
        ks: kernel size of the first convolution (not used where the genotype has 'msa', as the
            stem is a patch embedding then).
        is_imagenet_input: expect 224 x 224 images instead of 32 x 32.
        stem_pool: end a stem of type 0 with a max pooling.
        stem_type: 0, one convolution, or 1, three of them.
        norm: "bnorm" or None.
        preproc: match channels at the inputs of each cell with 1 x 1 convolutions.
        C_mult: factor on the channels at each reduction.
        fc_layers: linear layers of the classifier (0 means 1).
        fc_dim: width of the hidden ones.
        glob_avg: average over pixels before the classifier instead of flattening them.
        build: called as build(factory, *arguments) to make each module; those of
            :func:`ghn_fast.nets.build_ghost` have no memory.

    Raises:
        TypeError, ValueError: an argument that describes no network; the message says which.

    Examples:
        >>> from ghn_fast.nets import DARTS
        >>> network = ghn_fast.Network(16, 10, DARTS, n_cells=3)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    expected_input_sz: int
    """height and width of the images"""

    def __init__(
        self,
        C: int,
        num_classes: int,
        genotype: Genotype | Mapping[str, Any],
        n_cells: int,
        ks: int = 3,
        is_imagenet_input: bool = True,
        stem_pool: bool = False,
        stem_type: int = 0,
        norm: str | None = "bnorm",
        preproc: bool = True,
        C_mult: int = 2,
        fc_layers: int = 1,
        fc_dim: int = 0,
        glob_avg: bool = True,
        *,
        build: Build = _fresh,
    ) -> None:
        super().__init__()
        genotype = from_dict(genotype)
        self._check(C, num_classes, genotype, n_cells, ks, stem_type, preproc, C_mult)
        if fc_layers > 1 and fc_dim <= 0:
            raise ValueError(f"fc_dim must be positive with {fc_layers} fc_layers, got {fc_dim}")
        plan = plan_network(genotype, n_cells)
        if plan is None:
            raise ValueError("'none' operations cut every path from the input to the output")
        self.genotype = genotype
        self.expected_input_sz = 224 if is_imagenet_input else 32
        self._is_vit = "msa" in genotype.operations
        if not glob_avg and (n_cells < 3 or (self._is_vit and not is_imagenet_input)):
            raise ValueError(
                "glob_avg=False needs both reductions (3 cells or more) and, for 32x32 images, a "
                "genotype without 'msa': the classifier's width is that of their feature maps"
            )
        self._stem_type = stem_type
        self._stem_alive = plan.stem
        self._published = (genotype, n_cells, stem_type, stem_pool, norm, preproc)
        channels = self._add_stem(build, C, ks, is_imagenet_input, stem_pool, norm, preproc)
        channels = self._add_cells(
            build, plan.cells, (channels, channels), C, n_cells, norm, preproc, C_mult
        )
        self._add_head(
            build, channels, num_classes, is_imagenet_input, stem_pool, fc_layers, fc_dim, glob_avg
        )

    @property
    def graph_products(self) -> tuple[bool, ...]:
        """For each gate and attention, in order of execution, whether it is a node of the graph."""
        return tuple(published_products(*self._published).values())

    @staticmethod
    def _check(
        C: int,
        num_classes: int,
        genotype: Genotype,
        n_cells: int,
        ks: int,
        stem_type: int,
        preproc: bool,
        C_mult: int,
    ) -> None:
        for name, value in (
            ("C", C),
            ("num_classes", num_classes),
            ("n_cells", n_cells),
            ("C_mult", C_mult),
        ):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if stem_type not in (0, 1):
            raise ValueError(f"stem_type must be 0 or 1, got {stem_type}")
        if ks < 1 or ks % 2 == 0:
            raise ValueError(f"ks must be odd and positive, got {ks}")
        wide = max(len(genotype.normal_concat), len(genotype.reduce_concat)) > 1 or C_mult > 1
        if not preproc and wide:
            raise ValueError(
                "preproc=False works only where cells keep the number of channels: "
                "C_mult of 1 and one state in each concat"
            )

    def _add_stem(
        self,
        build: Build,
        C: int,
        ks: int,
        is_imagenet_input: bool,
        stem_pool: bool,
        norm: str | None,
        preproc: bool,
    ) -> int:
        """Creates the stem, returns its number of output channels."""
        if self._is_vit:
            patch = 16 if is_imagenet_input else 3
            self.stem0 = build(_patch_embedding, C, patch, 0 if is_imagenet_input else 1)
            self.pos_enc = build(PositionEncoding, C, 14 if is_imagenet_input else 11)
            return C
        if self._stem_type == 0:
            width = 3 * C if preproc and not is_imagenet_input else C
            stride = 4 if is_imagenet_input else 1
            self.stem = build(_simple_stem, width, ks, stride, stem_pool, norm)
            return width
        self.stem0 = build(_first_stem, C, ks, 2 if is_imagenet_input else 1, norm)
        self.stem1 = build(_second_stem, C, norm)
        return C

    def _add_cells(
        self,
        build: Build,
        plans: tuple[CellPlan | None, ...],
        inputs: tuple[int, int],
        C: int,
        n_cells: int,
        norm: str | None,
        preproc: bool,
        C_mult: int,
    ) -> int:
        """Creates the cells, returns the number of channels after the last one."""
        genotype = self.genotype
        cells = []
        halved = self._stem_type == 1  # whether the second last output is twice as large
        for position, plan in enumerate(plans):
            reduction = is_reduction(position, n_cells)
            if reduction:
                C *= C_mult
            edges = genotype.reduce if reduction else genotype.normal
            pre = (
                _make_preprocess(build, inputs[0], C, halved and not self._is_vit, norm, preproc),
                _make_preprocess(build, inputs[1], C, False, norm, preproc),
            )
            strided = reduction and not self._is_vit
            operations = [
                build(make_operation, name, C, 2 if strided and source < 2 else 1, norm)
                for name, source in edges
            ]
            cells.append(Cell(edges, plan, pre, operations))
            concat = genotype.reduce_concat if reduction else genotype.normal_concat
            inputs = (inputs[1], len(concat) * C)
            halved = reduction
        self.cells = nn.ModuleList(cells)
        return inputs[1]

    def _add_head(
        self,
        build: Build,
        channels: int,
        num_classes: int,
        is_imagenet_input: bool,
        stem_pool: bool,
        fc_layers: int,
        fc_dim: int,
        glob_avg: bool,
    ) -> None:
        self.global_pooling = nn.AdaptiveAvgPool2d(1) if glob_avg else nn.Identity()
        self._flattened_size: int | None = None
        if not glob_avg:
            size = 14 if is_imagenet_input else 8
            self._flattened_size = size // 2 if self._stem_type == 1 or stem_pool else size
            channels *= self._flattened_size**2
        hidden = max(fc_layers, 1) - 1
        layers: list[nn.Module] = []
        for _ in range(hidden):
            layers += [build(nn.Linear, channels, fc_dim), nn.ReLU(), nn.Dropout(p=0.5)]
            channels = fc_dim
        self.classifier = nn.Sequential(*layers, build(nn.Linear, channels, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """The (B, num_classes) logits of (B, 3, H, W) images."""
        s0, s1 = self._stem_outputs(images)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
        assert s1 is not None  # the constructor refuses networks that are cut off
        features = self.global_pooling(s1)
        size = self._flattened_size
        if size is not None and features.shape[2:] != (size, size):
            # Of images of another size: as torchvision's VGG and AlexNet bring maps to theirs.
            features = nn.functional.adaptive_avg_pool2d(features, size)
        return self.classifier(features.flatten(1))

    def _stem_outputs(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self._is_vit:
            tokens = self.pos_enc(self.stem0(images))
            return tokens, tokens
        if self._stem_type == 0:
            features = self.stem(images)
            return features, features
        # stem1 begins with a ReLU, which the published networks apply in place: both see it.
        first = torch.relu(self.stem0(images))
        return first, self.stem1(first) if self._stem_alive[1] else None


def _make_preprocess(
    build: Build, in_channels: int, channels: int, halve: bool, norm: str | None, preproc: bool
) -> nn.Module:
    if not preproc:
        return build(Subsample, 2) if halve else nn.Identity()
    if halve:
        return build(FactorizedReduce, in_channels, channels, norm)
    return build(ReLUConvNorm, in_channels, channels, 1, 1, norm)


def _patch_embedding(channels: int, patch: int, padding: int) -> nn.Module:
    return nn.Conv2d(3, channels, patch, stride=patch, padding=padding, bias=False)


def _simple_stem(channels: int, ks: int, stride: int, pool: bool, norm: str | None) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, channels, ks, stride, ks // 2, bias=False),
        make_norm(norm, channels),
        nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity(),
    )


def _first_stem(channels: int, ks: int, stride: int, norm: str | None) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, channels // 2, ks, stride, ks // 2, bias=False),
        make_norm(norm, channels // 2),
        nn.ReLU(),
        nn.Conv2d(channels // 2, channels, 3, stride, 1, bias=False),
        make_norm(norm, channels),
    )


def _second_stem(channels: int, norm: str | None) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, 2, 1, bias=False),
        make_norm(norm, channels),
    )


def check_image_size(size: int, is_imagenet_input: bool) -> None:
    """Refuses images whose maps networks of the design space cannot halve.

    Cells bring maps to half their size in several ways, which agree on even sides only, and two
    cells do; stems shorten the sides by 1 or 2, with ``is_imagenet_input`` by 4 or 8.

    Raises:
        ValueError: not a multiple of 8, or of 32 with ``is_imagenet_input``.
    """
    step = 32 if is_imagenet_input else 8
    if size < step or size % step:
        nearest = max(round(size / step), 1) * step
        raise ValueError(
            f"networks of DeepNets-1M halve the maps of their images several times: images of "
            f"{size} pixels cannot be, multiples of {step} can; take {nearest}"
        )


def build_ghost(net_args: Mapping[str, Any], num_classes: int, is_imagenet_input: bool) -> Network:
    """A network whose parameters are meta tensors: shapes without memory or initialisation.

    Predicted tensors take their places before the network is run. Modules are copied from
    templates that are made once, which is several times faster than constructing them.

    Args:
        net_args: the arguments of `Network` but these two.
        num_classes: outputs.
        is_imagenet_input: expect 224 x 224 images instead of 32 x 32.

    Raises:
        TypeError, ValueError: as for `Network`.
    """
    with uncollected():
        return Network(
            num_classes=num_classes, is_imagenet_input=is_imagenet_input, build=_ghost, **net_args
        )


def build_net(net_args: Mapping[str, Any], num_classes: int, is_imagenet_input: bool) -> nn.Module:
    """The network of a graph's `net_args`: a `Network`, or torchvision's ResNet-50.

    ResNet-50, which the predefined split has, is given as `{"genotype": "resnet50"}`; for small
    images its stem is adjusted.

    Raises:
        TypeError, ValueError: as for `Network`.
    """
    if net_args["genotype"] != "resnet50":
        return Network(num_classes=num_classes, is_imagenet_input=is_imagenet_input, **net_args)
    from torchvision.models import resnet50

    return adjust_net(resnet50(num_classes=num_classes), large_input=is_imagenet_input)


def _ghost(factory: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    return _copy(_template(factory, *arguments))


@functools.lru_cache(maxsize=4096)
def _template(factory: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return factory(*arguments)


_OWN_TABLES = tuple(
    name for name, value in nn.Module().__dict__.items() if isinstance(value, dict | set)
)


def _copy(module: nn.Module) -> nn.Module:
    """A copy that shares nothing with `module` but constants; parameters are new meta tensors."""
    copy = object.__new__(type(module))
    fields = copy.__dict__
    fields.update(module.__dict__)
    for table in _OWN_TABLES:
        content = fields[table]
        # Nearly all are empty, and a new one is made faster than a copy.
        fields[table] = content.copy() if content else type(content)()
    for name, child in module._modules.items():
        fields["_modules"][name] = None if child is None else _copy(child)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            # What nn.Parameter does, without its checks.
            fields["_parameters"][name] = Tensor._make_subclass(nn.Parameter, parameter, True)
    return copy
