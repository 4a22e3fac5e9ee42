"""The published files of DeepNets-1M: `deepnets1m_*.hdf5` and their JSON."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ghn_fast._system.errors import FileError, shown
from ghn_fast._system.files import read_text
from ghn_fast._system.typed import is_of
from ghn_fast.graph.graph import Graph
from ghn_fast.graph.node import Node
from ghn_fast.graph.types import NODE_TYPE_INDEX
from ghn_fast.nets.generate.graphs import with_flat_head
from ghn_fast.nets.generate.sampler import evaluation_width, training_widths, wide_factor
from ghn_fast.nets.space.genotypes import Genotype, from_dict
from ghn_fast.nets.space.network import build_ghost

ARGUMENTS = (
    *("genotype", "n_cells", "ks", "stem_type", "stem_pool", "norm"),
    *("preproc", "C_mult", "fc_layers", "fc_dim", "glob_avg"),
)
"""The arguments of `Network` that every network has in the JSON. The width, C, is not among them
where it is chosen later."""
_RANGES: dict[str, tuple[Any, int, int]] = {
    "n_cells": (int, 1, 1000),
    "ks": (int, 1, 99),
    "stem_type": (int, 0, 1),
    "stem_pool": (bool, 0, 1),
    "preproc": (bool, 0, 1),
    "C_mult": (int, 1, 10),
    "fc_layers": (int, 0, 10),
    "fc_dim": (int, 0, 100_000),
    "glob_avg": (bool, 0, 1),
    "C": (int, 1, 100_000),
}
"""Types of arguments, the least and the most: a file does not decide how much memory is taken."""
_MOST_OPERATIONS, _MOST_NODES = 50_000, 10_000
"""Of a network. Published ones have up to 1440 and 1400."""


class NetsFileError(FileError):
    """A file is damaged; the message names it, the network and the cause."""


def file_of(split: str) -> str:
    """The part of the files' names that says where a split is."""
    return split if split in ("train", "search") else "eval"


def import_h5py() -> Any:
    """The module h5py.

    Raises:
        ImportError: says how to install it.
    """
    try:
        import h5py
    except ImportError:
        raise ImportError(
            "published files of networks need h5py: pip install 'ghn-fast[nets]'"
        ) from None
    return h5py


class PublishedNets:
    """The networks of one split.

    The JSON is read at once, HDF5 data when a network is asked for, by each process through a
    file handle of its own.

    Raises:
        FileNotFoundError: a file is missing.
        NetsFileError: the JSON is damaged or has no such split.
    """

    def __init__(self, nets_dir: Path, split: str) -> None:
        name = file_of(split)
        self.path = nets_dir / f"deepnets1m_{name}.hdf5"
        self.meta_path = nets_dir / f"deepnets1m_{name}_meta.json"
        self.split = split
        for path in (self.path, self.meta_path):
            if not path.is_file():
                raise FileNotFoundError(f"{path} does not exist; DeepNets-1M needs it")
        self._read_meta()
        self._file: Any = None
        self._owner: int | None = None

    def _read_meta(self) -> None:
        try:
            content = json.loads(read_text(self.meta_path))
        except (ValueError, RecursionError) as error:
            raise NetsFileError(f"{self.meta_path} is not JSON: {error}") from None
        if not isinstance(content, dict) or self.split not in content:
            raise NetsFileError(f"{self.meta_path} has no split {self.split!r}")
        try:
            part = content[self.split]
            self._nets: list[dict[str, Any]] = _all_of(dict, part["nets"])
            self._types = _numbered(part["meta"]["primitives_ext"])
            self._names = _numbered(part["meta"]["unique_op_names"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NetsFileError(
                f"{self.meta_path}, split {self.split!r}: {type(error).__name__}: {error}"
            ) from None

    def __len__(self) -> int:
        return len(self._nets)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_owner": None}

    def net_args(self, index: int, seed: int, large_images: bool) -> dict[str, Any]:
        """The arguments of `Network` for network `index`.

        Widths that the file leaves open (all of "train") are drawn from (seed, index).
        """
        stored = self._nets[index]
        missing = [name for name in ARGUMENTS if name not in stored]
        if missing:
            raise self._error(index, f"the JSON lacks {', '.join(missing)}", self.meta_path)
        net_args = {name: stored[name] for name in ARGUMENTS}
        try:
            net_args["genotype"] = from_dict(stored["genotype"])
            _check_arguments(stored, net_args["genotype"])
        except (ValueError, TypeError, OverflowError) as error:
            raise self._error(index, str(error), self.meta_path) from None
        if self.split == "train":
            net_args["C"], net_args["fc_dim"] = training_widths(seed, index, net_args, large_images)
        else:
            net_args["C"] = stored.get("C") or evaluation_width(net_args)
            if self.split == "wide":
                net_args["C"] *= wide_factor(large_images)
        return net_args

    def graph(self, index: int, seed: int, large_images: bool, num_classes: int) -> Graph:
        """The stored graph of network `index`, with the shapes of the network's parameters."""
        net_args = self.net_args(index, seed, large_images)
        adjacency, rows = self._read(index)
        try:
            network = build_ghost(net_args, num_classes, large_images)
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._error(index, str(error), self.meta_path) from None
        parameters = dict(network.named_parameters())
        stored = [self._node(index, row, parameters) for row in rows.tolist()]
        nodes = with_flat_head(stored, net_args, large_images)
        edges = np.argwhere(adjacency == 1)
        if (edges[:, 0] >= edges[:, 1]).any():
            raise self._error(index, "its nodes are not in topological order")
        predicted = {name for node in nodes for name in (node.parameter, node.bias)}
        return Graph(
            nodes=nodes,
            edges=torch.from_numpy(edges),
            unused={
                name: "has no node in the published graph"
                for name in parameters
                if name not in predicted
            },
            net_args=net_args,
            index=index,
        )

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The (N, N) distances and the (N, 3) numbers of type, cell and name."""
        file = self._open()
        try:
            group = file[self.split][str(index)]
            adjacency, rows = _integers(group["adj"]), _integers(group["nodes"])
            self._check_shapes(index, adjacency.shape, rows.shape)
            return adjacency[()], rows[()]
        except NetsFileError:
            raise
        except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise self._error(index, f"cannot be read: {error}") from None

    def _check_shapes(self, index: int, adjacency: Any, rows: Any) -> None:
        """Before anything is read, as a file may say any size."""
        size = rows[0] if rows else 0
        if (adjacency, rows) != ((size, size), (size, 3)):
            raise self._error(
                index, f"'adj' is {adjacency} and 'nodes' is {rows}; they do not match"
            )
        expected = self._nets[index].get("num_nodes", size)
        if size != expected:
            raise self._error(
                index, f"it has {size} nodes, {shown(expected)} according to the JSON"
            )
        if not 0 < size <= _MOST_NODES:
            raise self._error(index, f"it has {size} nodes; networks have 1 to {_MOST_NODES}")

    def _open(self) -> Any:
        # HDF5 handles do not survive a fork.
        if self._file is None or self._owner != os.getpid():
            h5py = import_h5py()
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                raise NetsFileError(f"{self.path} cannot be opened: {error}") from None
            self._owner = os.getpid()
        return self._file

    def _node(self, index: int, row: list[int], parameters: dict[str, nn.Parameter]) -> Node:
        kind, cell, operation = row
        if kind not in self._types or operation not in self._names:
            raise self._error(index, f"node {row} has a number that {self.meta_path} does not name")
        node_type = _node_type(self._types[kind])
        if node_type not in NODE_TYPE_INDEX:
            raise self._error(index, f"unknown primitive {self._types[kind]!r}")
        if node_type in ("max_pool", "avg_pool"):
            return Node(node_type, node_type, (1, 1, 3, 3))  # every pooling of DeepNets-1M is 3 x 3
        if node_type in ("input", "sum", "concat", "glob_avg", "msa", "cse"):
            return Node(node_type, node_type)
        name = _parameter_name(self._names[operation], cell)
        if name not in parameters:
            raise self._error(index, f"the network has no parameter {name!r}")
        bias = name.replace(".weight", ".bias") if node_type in ("bn", "ln") else None
        return Node(node_type, name, tuple(parameters[name].shape), name, bias)

    def _error(self, index: int, cause: str, path: Path | None = None) -> NetsFileError:
        where = f"{path or self.path}, split {self.split!r}, network {index}"
        return NetsFileError(f"{where}: {cause}")


def _all_of(kind: type, values: Any) -> list[Any]:
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"{shown(value)} instead of a {kind.__name__}")
    return list(values)


def _numbered(names: dict[str, Any]) -> dict[int, str]:
    return dict(zip(map(int, names.keys()), _all_of(str, names.values()), strict=True))


def _check_arguments(stored: dict[str, Any], genotype: Genotype) -> None:
    """Raises a ValueError where arguments are of another type, or larger than those of any net."""
    if not is_of(stored["norm"], str | None):
        raise ValueError(f"norm is {shown(stored['norm'])}")
    for name, (kind, least, most) in _RANGES.items():
        value: Any = stored.get(name)
        if name == "C" and value is None:
            continue
        if not (is_of(value, kind) and least <= value <= most):
            allowed = f"{kind.__name__} from {least} to {most}"
            raise ValueError(f"{name} is {shown(value)}; it has to be {allowed}")
    operations = stored["n_cells"] * len(genotype.operations)
    if operations > _MOST_OPERATIONS:
        raise ValueError(f"it has {operations} operations, more than {_MOST_OPERATIONS}")


def _integers(data: Any) -> Any:
    if not isinstance(data, import_h5py().Dataset) or data.dtype.kind not in "iu":
        raise TypeError(f"{data} is no array of integers")
    return data


def _node_type(primitive: str) -> str:
    """The node type of a stored primitive, which may carry a kernel size: "conv_1x1"."""
    return {"fc-b": "bias"}.get(primitive, re.sub(r"_\dx\d$", "", primitive))


def _parameter_name(stored: str, cell: int) -> str:
    """The full name of a parameter; names in cells are stored without the cell.

    Files of different ages name some parameters differently.
    """
    if stored.endswith("to_out.0."):
        stored += "weight"
    stored = re.sub(r"^_ops\.(\d+)\.(\d+)\.", r"_ops.\1.op.\2.", stored)
    if stored.startswith(("stem", "pos_enc", "classifier")):
        return stored
    return f"cells.{cell}.{stored}"
