"""How well networks classify with predicted parameters (arXiv 2110.13100, section 5.1)."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast.data import Images, normalise
from ghn_fast.files import write_text
from ghn_fast.ghn import GHN
from ghn_fast.graph import Graph
from ghn_fast.nets import adjust_net, build_ghost, build_net, count_parameters, sample_net_args
from ghn_fast.nets.direct import graph_of
from ghn_fast.nets.sampler import PREDEFINED

BASELINES = ("ghn", "random")
BATCH_SIZE = 64


class EvaluationError(ValueError):
    """An evaluation that cannot be done or resumed; the message says why."""


@dataclass
class NetworkResult:
    """One network.

    Attributes:
        index: in its split.
        top1: percent of the images.
        parameters: how many numbers it has.
        seconds: for predicting and classifying.
    """

    index: int
    top1: float
    parameters: int
    seconds: float


@dataclass
class EvaluationResult:
    """The networks of a split, one by one and together.

    Attributes:
        split, seed, baseline, num_images, batch_size: what was evaluated.
        networks: the results, in the order of the split.
    """

    split: str
    seed: int
    baseline: str
    num_images: int
    batch_size: int
    networks: list[NetworkResult] = field(default_factory=list)

    @property
    def top1(self) -> list[float]:
        """Of each network, in percent."""
        return [network.top1 for network in self.networks]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.top1)

    @property
    def std(self) -> float:
        """The sample standard deviation over the networks; 0 for a single one."""
        return statistics.stdev(self.top1) if len(self.networks) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Of the mean over the networks."""
        return self.std / math.sqrt(len(self.networks))

    @property
    def best(self) -> float:
        return max(self.top1)

    def summary(self) -> dict[str, float]:
        """The figures to report."""
        return {
            "networks": len(self.networks),
            "mean": self.mean,
            "standard_error": self.standard_error,
            "std": self.std,
            "best": self.best,
            "worst": min(self.top1),
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """As JSON; written to ``path`` where one is given."""
        content = {**asdict(self), "summary": self.summary() if self.networks else {}}
        text = json.dumps(content, indent=1) + "\n"
        if path is not None:
            write_text(Path(path), text)
        return text

    @classmethod
    def from_json(cls, path: str | Path) -> EvaluationResult:
        """What :meth:`to_json` wrote.

        Raises:
            EvaluationError: it is no such file.
        """
        try:
            content = json.loads(Path(path).read_text())
            content.pop("summary")
            networks = [NetworkResult(**network) for network in content.pop("networks")]
            return cls(networks=networks, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise EvaluationError(f"{path} holds no evaluation results ({error})") from None


def evaluate(
    ghn: GHN | None,
    split: str = "test",
    images: Images | None = None,
    *,
    num_nets: int = 50,
    num_images: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    baseline: str = "ghn",
    results_file: str | Path | None = None,
    on_network: Callable[[NetworkResult], object] | None = None,
) -> EvaluationResult:
    """Classifies images with networks of a split of DeepNets-1M.

    Normalisation uses the statistics of each batch, as predicted parameters come without running
    ones.

    Args:
        ghn: predicts the parameters; may be None for ``baseline="random"``.
        split: a split of :class:`ghn_fast.DeepNets1M`.
        images: what to classify; the test images of CIFAR-10 where left out.
        num_nets: the first ones of the split.
        num_images: use only the first ones.
        batch_size: images in a batch.
        seed: of the split's networks; of their parameters too with ``baseline="random"``.
        baseline: ``"ghn"``, or ``"random"`` for PyTorch's default initialisation.
        results_file: written after every network; one that exists already is completed.
        on_network: called after every network.

    Raises:
        EvaluationError: no GHN, an unknown baseline, or a results file of something else.
        ghn_fast.data.DataError: there are no images.
    """
    if baseline not in BASELINES:
        raise EvaluationError(f"baseline must be one of {', '.join(BASELINES)}, not {baseline!r}")
    if baseline == "ghn" and ghn is None:
        raise EvaluationError("baseline='ghn' needs a GHN")
    chosen = _images(images, num_images)
    result = EvaluationResult(split, seed, baseline, len(chosen), batch_size)
    if results_file is not None and Path(results_file).exists():
        result = _resume(result, Path(results_file))
    num_nets = min(num_nets, len(PREDEFINED)) if split == "predefined" else num_nets
    for index in range(len(result.networks), num_nets):
        network = _evaluate_one(ghn, result, index, chosen)
        result.networks.append(network)
        if results_file is not None:
            result.to_json(results_file)
        if on_network is not None:
            on_network(network)
    result.networks = result.networks[:num_nets]
    return result


def evaluate_resnet50(
    ghn: GHN | None,
    images: Images | None = None,
    *,
    num_images: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> float:
    """Top-1 in percent of torchvision's ResNet-50 with its stem fitted to small images.

    With its parameters as the GHN predicts them, or as PyTorch initialises them if it is None.
    """
    from torchvision.models import resnet50

    chosen = _images(images, num_images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = adjust_net(resnet50(num_classes=10 if ghn is None else ghn.config.num_classes))
    if ghn is not None:
        _predict(ghn, model)
    return top1(model, chosen, batch_size)


@torch.no_grad()
def top1(model: nn.Module, data: Images, batch_size: int = BATCH_SIZE) -> float:
    """Percent of the images that are classified correctly, normalised by batch statistics."""
    device = next(model.parameters()).device
    use_batch_statistics(model.eval())
    correct = 0
    for start in range(0, len(data), batch_size):
        images = normalise(data.images[start : start + batch_size].to(device))
        labels = data.labels[start : start + batch_size].to(device)
        correct += int((model(images).argmax(dim=1) == labels).sum())
    return 100.0 * correct / len(data)


def use_batch_statistics(model: nn.Module) -> nn.Module:
    """Makes batch normalisation use each batch's own statistics and keep none; in place."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return model


def _images(images: Images | None, num_images: int | None) -> Images:
    if images is None:
        from ghn_fast.data import load_cifar10

        images = load_cifar10(split="test")
    return images.first(num_images)


def _resume(wanted: EvaluationResult, path: Path) -> EvaluationResult:
    found = EvaluationResult.from_json(path)
    for name in ("split", "seed", "baseline", "num_images", "batch_size"):
        if getattr(found, name) != getattr(wanted, name):
            raise EvaluationError(
                f"{path} has results for {name}={getattr(found, name)!r}, not "
                f"{getattr(wanted, name)!r}; move it away or pass another results_file"
            )
    return found


def _evaluate_one(
    ghn: GHN | None, result: EvaluationResult, index: int, images: Images
) -> NetworkResult:
    start = time.perf_counter()
    net_args = sample_net_args(result.split, result.seed, index)
    if result.baseline == "ghn":
        assert ghn is not None
        model = _predicted_network(ghn, net_args)
    else:
        model = _random_network(net_args, result.seed + index)
    accuracy = top1(model, images, result.batch_size)
    return NetworkResult(index, accuracy, _size(model, net_args), time.perf_counter() - start)


def _size(model: nn.Module, net_args: dict[str, Any]) -> int:
    if isinstance(net_args["genotype"], str):
        return sum(parameter.numel() for parameter in model.parameters())
    return count_parameters(net_args)


def _predicted_network(ghn: GHN, net_args: dict[str, Any]) -> nn.Module:
    num_classes = ghn.config.num_classes
    if isinstance(net_args["genotype"], str):
        return _predict(ghn, build_net(net_args, num_classes, is_imagenet_input=False))
    ghost = build_ghost(net_args, num_classes, is_imagenet_input=False)
    graph = graph_of(net_args, num_classes)
    return _predict(ghn, ghost.to_empty(device=_device(ghn)), graph)


def _random_network(net_args: dict[str, Any], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_net(net_args, num_classes=10, is_imagenet_input=False)


def _predict(ghn: GHN, model: nn.Module, graph: Graph | None = None) -> nn.Module:
    training = ghn.training
    ghn.eval()
    try:
        with torch.no_grad():
            ghn(model, graph)
    finally:
        ghn.train(training)
    return model


def _device(model: nn.Module) -> torch.device:
    parameter: Tensor = next(model.parameters())
    return parameter.device
