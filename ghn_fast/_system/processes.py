"""Training and evaluating in several processes, as torchrun starts them.

Gradients are summed by explicit all-reduces, not by `DistributedDataParallel`. DDP finds the
parameters that a step uses by walking back from the tensors its forward returns. A GHN returns
models, whose predicted tensors are then cut off from it so that networks can be run one by one,
and which of its parameters a step uses depends on the networks drawn, so differs between
processes. One all-reduce per step, after the only backward pass through the GHN, sees all of this.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from ghn_fast._system.digests import state_digest

T = TypeVar("T")

BUCKET_VALUES = 1 << 23
"""Values that are summed in one all-reduce, 32 MiB: few calls, and little memory beside them."""


@dataclass(frozen=True)
class Processes:
    """The processes that share the work.

    Attributes:
        rank: the number of this one, from 0; the first writes files.
        size: how many there are.
        control: the group through which small Python objects go, on the CPU; None for one process.
    """

    rank: int = 0
    size: int = 1
    control: Any = None

    @classmethod
    def current(cls) -> Processes:
        """All processes of the initialised default group; otherwise this one alone."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return ALONE
        control = None if dist.get_backend() == "gloo" else _control_group(dist.group.WORLD)
        return cls(dist.get_rank(), dist.get_world_size(), control)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The value of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def first(self, value: T) -> T:
        """The value of the first process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def any(self, value: bool) -> bool:
        """Whether it is true in any process."""
        return any(self.gather(value))

    def broadcast(self, model: nn.Module) -> None:
        """Gives all processes the first one's parameters and buffers, in place."""
        if self.size == 1:
            return
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.copy_(_from_first(tensor))

    def check_equal(self, model: nn.Module) -> None:
        """Compares a digest of the parameters and buffers of all processes.

        Raises:
            RuntimeError: they differ. What gradients were added up after they began to is worth
                nothing, as each is of another model.
        """
        digests = self.gather(state_digest(model)) if self.size > 1 else [""]
        differing = [str(rank) for rank, found in enumerate(digests) if found != digests[0]]
        if differing:
            raise RuntimeError(
                f"the model of the processes {', '.join(differing)} differs from that of the "
                "first: give all of them the same (Processes.broadcast), or go on from a "
                "checkpoint"
            )

    def sum_gradients(self, model: nn.Module) -> None:
        """Adds up the gradients of all processes, in place.

        A parameter without a gradient in some processes counts as zero there; one without a
        gradient in all of them stays without, so that the optimiser passes over it.
        """
        if self.size == 1:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        have = [p.grad is not None for p in parameters]
        present = _sum(torch.tensor(have, dtype=torch.int32, device=parameters[0].device))
        used = [p for p, count in zip(parameters, present.tolist(), strict=True) if count > 0]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in used if parameter.grad is not None]
        for bucket in _buckets(gradients):
            _sum_in_place(bucket)


ALONE = Processes()


class Tickets:
    """The numbers 0, 1, 2, ..., each for one process only: that which asks first.

    All processes have to make it, and the more of them they make in the same order.
    """

    _made = 0

    def __init__(self, processes: Processes) -> None:
        Tickets._made += 1
        self.key = f"ghn_fast/tickets/{Tickets._made}"
        self.store = dist.distributed_c10d._get_default_store() if processes.size > 1 else None
        self.taken = 0

    def take(self) -> int:
        """The next one."""
        if self.store is not None:
            return int(self.store.add(self.key, 1)) - 1
        self.taken += 1
        return self.taken - 1


def shares(costs: Sequence[float], count: int) -> list[list[int]]:
    """Divides things among processes so that each gets about the same cost.

    The costliest first, each to the process that has least so far (Graham's longest processing
    time rule, at most 4/3 of the best division). A pure function of its arguments.

    Args:
        costs: of each thing.
        count: of processes.

    Returns:
        The positions of each process's things, in ascending order.
    """
    totals = [0.0] * count
    parts: list[list[int]] = [[] for _ in range(count)]
    for position in sorted(range(len(costs)), key=lambda position: (-costs[position], position)):
        least = min(range(count), key=lambda part: (totals[part], len(parts[part]), part))
        totals[least] += costs[position]
        parts[least].append(position)
    return [sorted(part) for part in parts]


def choose_device(device: str = "auto") -> torch.device:
    """The device of this process: where it is ``auto``, its own GPU if there are any, else the CPU.

    Of several processes on a machine each gets the GPU of its local rank; where there are more
    processes than GPUs they share them, as small networks leave most of a GPU idle.

    Raises:
        ValueError: a device that is not there, or none.
    """
    available = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if available else "cpu"
    count = torch.cuda.device_count() if available else 0
    if device == "cuda":
        device = f"cuda:{local % max(count, 1)}"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise ValueError(f"device {device} is not there: {count} CUDA devices were found")
    return chosen


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that torchrun started; alone, it does nothing.

    NCCL on GPUs, gloo on CPUs and where processes share a GPU, which NCCL refuses. A group that is
    there already is used and left.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not started or dist.is_initialized():
        yield Processes.current()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(iter(rendezvous("env://")))
    backend = _backend(_all_devices(store, rank, size, device))
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield Processes.current()
    finally:
        dist.destroy_process_group()


def _all_devices(store: dist.Store, rank: int, size: int, device: torch.device) -> list[str]:
    """The machine and the device of every process, before there is a group."""
    store.set(f"ghn_fast/device/{rank}", f"{socket.gethostname()} {device}")
    return [store.get(f"ghn_fast/device/{other}").decode() for other in range(size)]


def _backend(devices: Sequence[str]) -> str:
    """NCCL where each process has a GPU for itself; the choice has to be the same in all."""
    all_own = len(set(devices)) == len(devices) and all(" cuda" in device for device in devices)
    return "nccl" if all_own else "gloo"


@functools.lru_cache(maxsize=1)
def _control_group(world: Any) -> Any:
    """A gloo group beside NCCL's, made once: small objects need not pass through the GPUs."""
    return dist.new_group(backend="gloo")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    values = 0
    for tensor in tensors:
        if bucket and values + tensor.numel() > BUCKET_VALUES:
            yield bucket
            bucket, values = [], 0
        bucket.append(tensor)
        values += tensor.numel()
    if bucket:
        yield bucket


def _from_first(tensor: Tensor) -> Tensor:
    """The first process's; gloo sends from the CPU."""
    sent = tensor.detach().contiguous().clone()
    sent = sent.cpu() if dist.get_backend() == "gloo" else sent
    dist.broadcast(sent, src=0)
    return sent.to(tensor.device)


def _sum(tensor: Tensor) -> Tensor:
    """Over all processes; gloo sums on the CPU."""
    summed = tensor.cpu() if dist.get_backend() == "gloo" else tensor
    dist.all_reduce(summed)
    return summed.to(tensor.device)


def _sum_in_place(tensors: Sequence[Tensor]) -> None:
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    flat = _sum(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    views = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(list(tensors), views)
