"""Everything that decides a training run."""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from ghn_fast._system.errors import FileError, failures, shown
from ghn_fast._system.files import read_text, write_text
from ghn_fast._system.typed import is_of
from ghn_fast.ghn.config import LARGEST_IMAGE_SIZE, OWN_SETTINGS

DEEPNETS, FAMILIES = "deepnets", "families"
"""Parts of a mixture; one family alone is ``"families/NAME"``."""
ATTENTION, BNFREE = f"{DEEPNETS}/attention", f"{DEEPNETS}/bnfree"
DEEPNETS_PARTS = (DEEPNETS, ATTENTION, BNFREE)
"""The train split of DeepNets-1M: all of it, its networks with attention, and without norms."""


class Range(NamedTuple):
    """Which numbers a setting has, each of them where it has several, and that in words."""

    words: str
    holds: Callable[[float], bool]


POSITIVE = Range("positive", lambda number: number > 0)
NOT_NEGATIVE = Range("at least 0", lambda number: number >= 0)
SHARE = Range("from 0 to 1", lambda number: 0 <= number <= 1)
BELOW_1 = Range("at least 0 and below 1", lambda number: 0 <= number < 1)
SEED = Range("from 0 to 2**64 - 1", lambda number: 0 <= number < 2**64)
IMAGE_SIZE = Range(
    f"from 1 to {LARGEST_IMAGE_SIZE}", lambda number: 1 <= number <= LARGEST_IMAGE_SIZE
)
FREE = "a resumed run may have another value"
"""Marks settings that do not decide what a run learns. Of meta-batch, accumulation and processes
only the product does, but for what :mod:`ghn_fast.train.resume` counts. The data and the teacher
may have another name, but have to be the same."""
_OWN = dict.fromkeys(OWN_SETTINGS, True)
"""What the graphs and the decoding of new GHNs have, and the published ones have not."""
_CIFAR10_EPOCH = 703
"""Batches of 64 in the 45,000 training images that are left without those for validation."""
_PUBLISHED: dict[str, Any] = {
    "ghn": {},
    "steps": 300 * _CIFAR10_EPOCH,
    "max_minutes": None,
    "meta_batch": 8,
    "image_batch": 64,
    "own_images": False,
    "max_nodes": 2200,
    "num_networks": 1_000_000,
    "cached_networks": 0,
    "widths": None,
    "max_work": None,
    "max_parameters": None,
    "betas": (0.9, 0.999),
    "grad_clip": 5.0,
    "network_clip": 0.0,
    "ema_decay": 0.0,
    "checkpoint_every": 1000,
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "ghn2-paper": {
        **_PUBLISHED,
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 1e-5,
        "warmup_steps": 0,
        "schedule": "step",
        "milestones": (200 / 300, 250 / 300),
        "decay": 0.1,
    },
    "ghn3-paper": {
        **_PUBLISHED,
        "ghn": {
            "hypernet": "graphormer",
            "max_shape": [64, 64, 11, 11],
            "hid": 64,
            "layers": 3,
            "heads": 8,
        },
        "optimizer": "adamw",
        "lr": 4e-4,
        "weight_decay": 1e-2,
        "warmup_steps": 5 * _CIFAR10_EPOCH,
        "schedule": "cosine",
        "final_lr": 0.0,
        "predicted_decay": 3e-5,
    },
}
"""Named configurations. ``ghn2-paper`` is arXiv 2110.13100, section 5: Adam, 1e-3 divided by ten at
epochs 200 and 250 of 300. ``ghn3-paper`` trains a GHN-3-T with the optimiser of arXiv 2303.04143
(AdamW 4e-4, weight decay 1e-2, warm-up over 5 epochs, cosine) and the decay of predicted
parameters of its public code, on CIFAR-10."""


class ConfigError(FileError):
    """A field has a value of another type or that makes no sense; the message names it."""


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of a run; saved with it as JSON.

    The defaults train a GHN-2 for CIFAR-10 on a small CPU.

    Attributes:
        ghn: settings of :class:`ghn_fast.ghn.GHNConfig`, or with
            ``{"hypernet": "graphormer"}`` of :class:`ghn_fast.ghn.GHN3Config`.
        data: the images, as :func:`ghn_fast.data.load_images` takes them; None looks for CIFAR-10
            in the usual places.
        image_size: height and width that images of other sizes are brought to, for data sets
            other than CIFAR-10.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` (the GPU of the process's
            local rank) or ``cuda:N``.
        init: a GHN to start from, as :func:`ghn_fast.from_pretrained` takes it; it must have the
            settings ``ghn``, but may lack ``flat_kernels``, ``channel_nodes`` and
            ``raised_layer_scales``. None starts from random weights.
        teacher: a classifier of the same classes to learn from, as ``ghn-fast fit`` writes one
            (``teacher.safetensors``), or ``NAME@FILE`` with the name of its model. Its logits of
            the training images, as they are and mirrored, are computed once, and kept in the
            run's folder in half precision. Needs ``crop_share=0``. In Python the trainer is
            given it (:class:`ghn_fast.train.Teacher`).
        teacher_share: of the targets, that the teacher decides; the labels decide the rest.
            ``label_smoothing`` is of the mixture.
        teacher_temperature: that its logits are divided by before their softmax (arXiv 1503.02531).
        seed: of the initial weights, the networks and the images.
        steps: of the optimiser; where None the run lasts ``max_minutes``, and the learning rate
            follows the share of them that has passed (such a run cannot be repeated exactly).
        max_minutes: the run ends within this time, with a checkpoint. Counts all resumed parts.
        meta_batch: networks in a step, for each process and each of ``accumulate`` parts.
        accumulate: parts of a step whose gradients add up: a step has ``meta_batch`` x
            ``accumulate`` x processes networks, with the GHN's memory of ``meta_batch``.
            It is the same step as with a ``meta_batch`` of as many networks, except that
            ``network_clip`` compares the networks of a part, and ``max_nodes`` counts parts.
        max_nodes: the networks of a step are drawn again where they have more nodes than this
            for each process and part (2200 in the public code); None for no limit.
        image_batch: images for a network.
        own_images: every network of a step gets other images, and not all the same ones as in the
            paper. Where the noise of the gradient comes from the images, as it does once the loss
            has fallen for a while, this halves the variance of 4 networks (docs/training.md).
        crop_share: of the run, in which images are cropped at random. After it they are whole, as
            in evaluation, and only mirrored: crops of the padded images that CIFAR-10 is trained
            with have borders that no test image has.
        network_work: a network gets only the first so many of its images that its work for them
            (as in ``max_work``, million multiply-adds) is within this, in groups of 8, but at
            least ``min_images``. So expensive networks need not be passed over. None for no limit.
        min_images: see ``network_work``.
        mixture: the parts that networks are drawn from and their weights: ``deepnets`` (the train
            split of DeepNets-1M), ``deepnets/attention`` (those of its networks whose cells
            have attention), ``deepnets/bnfree`` (its networks without their normalisation, as the
            split bnfree has none), ``families`` (all of
            :data:`ghn_fast.nets.families.FAMILIES` by their shares, the split families/train),
            ``families/NAME`` (one of them). Families are for 32 x 32 images, have widths of their
            own, and draw again what is beyond ``max_work`` or ``max_parameters``.
        first_come: of several processes each takes the next network of a step once it is free,
            instead of a share dealt beforehand. For processes on one GPU, where networks take
            times that nobody knows before. Needs ``own_images`` and ``normalise_networks``, and
            no ``accumulate`` or ``max_nodes``.
        num_networks: how many networks of the train split are used; None for all of them.
            Up to ``cached_networks`` of them are kept in memory once built.
        cached_networks: how many built networks are kept in memory, about 1 MB each.
        widths: the channels C that networks are drawn with; None for the split's own.
        max_work: a network drawn too wide gets the largest of the ``widths`` with at most this
            work (:func:`ghn_fast.train.network_work`, million multiply-adds per image); it is
            passed over if even the smallest is too much. None for no limit.
        max_cells, max_parameters: networks beyond are passed over; None for no limit.
        optimizer: ``adamw``, ``adam`` or ``soap`` (:class:`ghn_fast.train.soap.SOAP`).
        lr, weight_decay, betas: of the optimiser.
        warmup_steps: over which the learning rate rises from 0; at most a tenth of the run.
        schedule: ``cosine``, ``step`` (times ``decay`` at each of the ``milestones``) or
            ``constant``.
        final_lr: the cosine's end, as a share of ``lr``.
        milestones: shares of the run.
        decay: factor at each milestone.
        grad_clip: largest gradient norm; 0 for no limit.
        network_clip: longest gradient of a network as a multiple of the median of the networks of
            its part of the step, in all processes; 0 for no limit. A part of one network or two
            (from a factor of 2) is not limited.
        normalise_networks: scale the gradient of each network's predicted parameters to length 1
            over ``meta_batch``, instead of ``network_clip``, which limits nothing where a step
            has one network or two.
        label_smoothing: of the cross-entropy.
        predicted_decay: the weight of the sum of the norms of a network's predicted parameters in
            its loss.
        ema_decay: of the average of the weights, which is what is evaluated and exported; 0 for
            none.
        precision: in which the target networks run. There is no float16: it needs a scale of the
            loss that is searched for network by network; bfloat16 does not. The GHN itself, a
            few milliseconds of a step, stays in float32. Networks are not compiled: where it was
            measured (a network of width 16, one busy core), torch.compile halved a network's time
            but took as long as 470 runs of it, and each is used a few times.
        threads: that share the networks of a step; each uses one core. 0 for one per core. On a
            GPU networks run one after another.
        log_every, validate_every, checkpoint_every: in steps; 0 for never.
        validation_networks, validation_images: how many of the val split are evaluated.
        tensorboard: write event files as well (needs the package tensorboard).

    Examples:
        >>> ghn_fast.TrainConfig(meta_batch=2, lr=1e-3).meta_batch
        2
    """

    ghn: dict[str, Any] = field(default_factory=lambda: dict(_OWN))
    data: Annotated[str | None, FREE] = None
    image_size: Annotated[int, IMAGE_SIZE] = 32
    device: Annotated[str, FREE] = "auto"
    init: str | None = None
    teacher: Annotated[str | None, FREE] = None
    teacher_share: Annotated[float, SHARE] = 0.5
    teacher_temperature: Annotated[float, POSITIVE] = 2.0
    seed: Annotated[int, SEED] = 0
    steps: Annotated[int | None, POSITIVE] = None
    max_minutes: Annotated[float | None, POSITIVE, FREE] = 90.0
    meta_batch: Annotated[int, POSITIVE, FREE] = 8
    accumulate: Annotated[int, POSITIVE, FREE] = 1
    max_nodes: Annotated[int | None, POSITIVE] = None
    image_batch: Annotated[int, POSITIVE] = 32
    own_images: bool = True
    crop_share: Annotated[float, SHARE] = 1.0
    network_work: Annotated[float | None, POSITIVE] = None
    min_images: Annotated[int, POSITIVE] = 8
    mixture: dict[str, float] = field(default_factory=lambda: {DEEPNETS: 1.0})
    first_come: bool = False
    num_networks: Annotated[int | None, POSITIVE] = 4000
    cached_networks: Annotated[int, NOT_NEGATIVE, FREE] = 4000
    widths: tuple[int, ...] | None = (16, 24, 32, 48, 64)
    max_work: Annotated[float | None, POSITIVE] = 25.0
    max_cells: Annotated[int | None, POSITIVE] = None
    max_parameters: Annotated[int | None, POSITIVE] = 3_000_000
    optimizer: Literal["adamw", "adam", "soap"] = "adamw"
    lr: Annotated[float, POSITIVE] = 2e-3
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-2
    betas: Annotated[tuple[float, float], BELOW_1] = (0.9, 0.99)
    warmup_steps: Annotated[int, NOT_NEGATIVE] = 200
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    final_lr: Annotated[float, SHARE] = 0.01
    milestones: Annotated[tuple[float, ...], SHARE] = (0.67, 0.83)
    decay: Annotated[float, NOT_NEGATIVE] = 0.1
    grad_clip: Annotated[float, NOT_NEGATIVE] = 1.0
    network_clip: Annotated[float, NOT_NEGATIVE] = 2.0
    normalise_networks: bool = False
    label_smoothing: Annotated[float, SHARE] = 0.0
    predicted_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    ema_decay: Annotated[float, BELOW_1] = 0.998
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: Annotated[int, NOT_NEGATIVE, FREE] = 0
    log_every: Annotated[int, NOT_NEGATIVE, FREE] = 10
    validate_every: Annotated[int, NOT_NEGATIVE, FREE] = 2000
    checkpoint_every: Annotated[int, NOT_NEGATIVE, FREE] = 250
    validation_networks: Annotated[int, POSITIVE, FREE] = 6
    validation_images: Annotated[int, POSITIVE, FREE] = 256
    tensorboard: Annotated[bool, FREE] = False

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("milestones", "betas"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.widths is not None:
            object.__setattr__(self, "widths", tuple(sorted(self.widths)))
        self._check_numbers()
        self._check_together()

    def _check_types(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if not is_of(getattr(self, name), hint):
                raise ConfigError(f"{name} must be {_text(hint)}, not {getattr(self, name)!r}")

    def _check_numbers(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            numbers = list(_numbers(value))
            for mark in getattr(hint, "__metadata__", ()):
                if isinstance(mark, Range) and not all(map(mark.holds, numbers)):
                    raise ConfigError(f"{name} must be {mark.words}, not {value}")
            if not all(abs(number) <= sys.float_info.max for number in numbers):
                raise ConfigError(f"{name} must be finite, not {value}")

    def _check_together(self) -> None:
        if self.steps is None and self.max_minutes is None:
            raise ConfigError("a run needs an end: give steps, max_minutes or both")
        widths = self.widths
        if widths is not None and (not widths or any(w < 8 or w % 8 for w in widths)):
            raise ConfigError(f"widths must be multiples of 8, not {widths}")
        _check_mixture(self.mixture)
        _check_ghn(self.ghn)
        if self.first_come and not (self.own_images and self.normalise_networks):
            raise ConfigError("first_come needs own_images and normalise_networks")
        if self.first_come and (self.accumulate > 1 or self.max_nodes is not None):
            raise ConfigError("first_come goes with neither accumulate nor max_nodes")
        if self.teacher is not None:
            self.check_crops_for_teacher()

    def check_crops_for_teacher(self) -> None:
        """Raises a ConfigError where images are cropped: of crops there are no logits."""
        if self.crop_share > 0:
            raise ConfigError(
                "a teacher's logits are computed once, of whole images: set crop_share=0, not "
                f"{self.crop_share}"
            )

    def networks_per_step(self, processes: int = 1) -> int:
        """Networks in a step of all processes."""
        return self.meta_batch * self.accumulate * processes

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TrainConfig:
        """A published way of training, with fields changed.

        Raises:
            ConfigError: an unknown preset or field.
        """
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
        return cls.from_dict({**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """From field names and values, as :meth:`to_dict` gives them.

        Raises:
            ConfigError: an unknown field.
        """
        known = [item.name for item in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(unknown)}; {_hint(unknown[0], known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible field names and values."""
        loaded: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return loaded

    def save(self, path: str | Path) -> None:
        write_text(Path(path), json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path, **changes: Any) -> TrainConfig:
        """From a file that :meth:`save` wrote, with fields changed.

        Raises:
            ConfigError: there is none, it is damaged, or a field is unknown or wrong.
        """
        with failures(path, ConfigError):
            values = json.loads(read_text(Path(path)))
            if type(values) is not dict:
                raise FileError(f"it has {shown(values)}, and settings are a dictionary")
            return cls.from_dict({**values, **changes})


def free_settings() -> set[str]:
    """Those of :class:`TrainConfig` that are marked ``FREE``."""
    hints = get_type_hints(TrainConfig, include_extras=True)
    return {name for name, hint in hints.items() if FREE in getattr(hint, "__metadata__", ())}


def _hint(name: str, known: list[str]) -> str:
    """A message has no room for all names."""
    close = difflib.get_close_matches(name, known)
    meant = f"did you mean {', '.join(close)}? " if close else ""
    return f"{meant}help(ghn_fast.train.TrainConfig) says which there are"


def _check_mixture(mixture: Mapping[str, float]) -> None:
    from ghn_fast.nets.families import FAMILIES as ALL

    known = (*DEEPNETS_PARTS, FAMILIES, *(f"{FAMILIES}/{name}" for name in ALL))
    unknown = sorted(set(mixture) - set(known))
    if unknown:
        raise ConfigError(f"mixture has no part {', '.join(unknown)}; there are {', '.join(known)}")
    weights = mixture.values()
    if not all(is_of(w, float) and w > 0 for w in weights) or not 0 < sum(weights) < math.inf:
        raise ConfigError(f"mixture needs parts with positive weights, not {mixture}")


def _check_ghn(settings: Mapping[str, Any]) -> None:
    from ghn_fast.ghn.make import config_class, make_config

    for name, hint in get_type_hints(config_class(settings)).items():
        if name in settings and not is_of(settings[name], hint):
            raise ConfigError(f"ghn's {name} must be {_text(hint)}, not {settings[name]!r}")
    try:
        make_config(settings)
    except ValueError as error:
        raise ConfigError(f"ghn: {error}") from None


def _numbers(value: Any) -> Iterator[float]:
    """All that are in a setting."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)


def _text(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    return hint.__name__ if type(hint) is type else str(hint)
