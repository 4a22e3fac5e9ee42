"""Going on from a checkpoint: what it keeps of a run, and whether it is of the same one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch.optim import Optimizer

from ghn_fast._system.errors import failures
from ghn_fast._system.processes import Processes
from ghn_fast.checkpoint.errors import CheckpointError
from ghn_fast.checkpoint.tensor_pickle import load_tensor_pickle
from ghn_fast.checkpoint.training import check_finite, fitted, load_optimizer
from ghn_fast.ghn import GHN
from ghn_fast.train.config import ConfigError, TrainConfig, free_settings

EXPORT_FILE = "ghn.safetensors"
_FORMAT = 1
COUNTERS = (
    "step",
    "network_position",
    "minutes",
    "skipped_steps",
    "left_out_networks",
    "failed_checkpoints",
    "longest",
)
"""What the trainer counts and measures, by its attributes' names."""


class Run(NamedTuple):
    """What a checkpoint keeps of a run besides the counters; of images and teacher the digests."""

    config: TrainConfig
    processes: int
    images: str
    teacher: str | None
    ghn: GHN
    average: GHN
    optimizer: Optimizer

    def state(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        """What :meth:`resume` goes on from."""
        return {
            "format": _FORMAT,
            "config": self.config.to_dict(),
            "processes": self.processes,
            "images": self.images,
            "teacher": self.teacher,
            "ghn": self.ghn.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **counters,
        }

    def resume(self, path: Path, counters: Mapping[str, Any]) -> dict[str, Any]:
        """Gives the GHNs and the optimiser what a file has kept, and returns its counters.

        Args:
            path: of the checkpoint.
            counters: as they are; those that the file does not have stay so.

        Raises:
            ConfigError: it is damaged, or of another run.
        """
        state = _load_checkpoint(path)
        with failures(path, ConfigError):
            saved = TrainConfig.from_dict(state["config"])
            _check_same_run(self.config, self.processes, saved, state.get("processes", 1), path)
            if state.get("images", self.images) != self.images:
                raise ConfigError("it learned from other images, or normalised in another way")
            if state.get("teacher") != self.teacher:
                raise ConfigError("its teacher is another one, or one of the two has none")
            for name, ghn in (("ghn", self.ghn), ("average", self.average)):
                ghn.load_state_dict(fitted(state[name], ghn.state_dict(), f"its {name}"))
                check_finite(ghn.state_dict(), f"its {name}")
            load_optimizer(self.optimizer, state["optimizer"])
            return {
                name: fitted(state.get(name, own), own, f"its {name}")
                for name, own in counters.items()
            }


def is_seen(path: Path, processes: Processes) -> bool:
    """Whether there is a checkpoint.

    Raises:
        ConfigError: for some of the processes alone.
    """
    found = processes.gather(path.exists())
    if any(found) and not all(found):
        missing = [str(rank) for rank, there in enumerate(found) if not there]
        raise ConfigError(
            f"{path} is not seen by the processes {', '.join(missing)}; all of them need the "
            "same folder"
        )
    return all(found)


def version(path: Path) -> tuple[int, int] | None:
    """What another writing of the file would change."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def _load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = load_tensor_pickle(path)
    except CheckpointError as error:
        raise ConfigError(
            f"{path} is not a readable checkpoint ({error}); move it away to start the run anew"
        ) from error
    needed = {"config", "ghn", "average", "optimizer"}
    if not isinstance(state, dict) or state.get("format") != _FORMAT or not needed <= set(state):
        raise ConfigError(f"{path} is not a checkpoint of this trainer; use another folder")
    return state


def _check_same_run(
    config: TrainConfig, processes: int, saved: TrainConfig, saved_processes: int, path: Path
) -> None:
    now, then = config.to_dict(), saved.to_dict()
    for values, one, count in ((now, config, processes), (then, saved, saved_processes)):
        values["networks_per_step"] = one.networks_per_step(count)
        values.update(_parts_that_decide(one, count))
    free = free_settings()
    names = [name for name in now if name not in free]
    changed = [name for name in names if now[name] != then.get(name)]
    if changed:
        differences = ", ".join(f"{name}: {then.get(name)!r} -> {now[name]!r}" for name in changed)
        raise ConfigError(
            f"it belongs to a run with other settings ({differences}); use these, or another "
            f"folder, where --set init={path.with_name(EXPORT_FILE)} trains on from this run"
        )


def _parts_that_decide(config: TrainConfig, processes: int) -> dict[str, int]:
    """In how many parts a step is divided, where limits are those of a part."""
    parts = {}
    if config.network_clip > 0 and not config.normalise_networks:
        parts["parts of accumulate"] = config.accumulate
    if config.max_nodes is not None:
        parts["accumulate x processes"] = config.accumulate * processes
    return parts
