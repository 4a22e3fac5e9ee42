"""A prediction on one page: the graph, the first layer, the signal in each layer, the accuracy."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from html import escape
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ghn_fast._system.batch_norm import use_batch_statistics
from ghn_fast._system.batches import logits_of
from ghn_fast._system.random import seeded
from ghn_fast._system.restored import restored
from ghn_fast.evaluation.published import CIFAR10
from ghn_fast.graph import Graph, Node
from ghn_fast.graph.draw import svg
from ghn_fast.graph.trace.inputs import guesses
from ghn_fast.graph.trace.search import Search
from ghn_fast.prediction import PredictionReport

_BATCH = 8
_MOST_FILTERS = 64
_DECADES = (-3.0, 0.0)
"""Of root mean squares, from the palest shade to the full one."""
_GRAPH = f"""<h2>Graph</h2>
<p>The paler a node, the smaller the root mean square of what was predicted for it, on a
logarithmic scale from {10 ** _DECADES[0]:g} to {10 ** _DECADES[1]:g}. Hollow nodes kept their
values; operations without parameters have the full colour. Point at a node for its name, its shape
and the reason.</p>
<div class='wide'>{{}}</div>"""
_COLOURS = {"random": "#8a8a8a", "predicted": "#e4572e"}
_WIDTH, _HEIGHT, _MARGIN = 960.0, 260.0, 52.0
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; margin: 2em auto;
       max-width: 1200px; padding: 0 1em }
h2 { margin: 1.6em 0 .3em } p { max-width: 52em } .summary { white-space: pre-line }
figure { margin: 0; display: inline-block }
.pair { display: flex; gap: 2em; flex-wrap: wrap } .wide { overflow-x: auto }
img { width: 420px; image-rendering: pixelated; border: 1px solid #ccc }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 1px 12px 1px 0;
text-align: left }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Nothing is fetched, and no script runs."""


class Accuracy(NamedTuple):
    """Percent of CIFAR-10 test images classified correctly, and of how many."""

    top1: float
    num_images: int


def card(
    name: str,
    random: nn.Module,
    predicted: nn.Module,
    graph: Graph,
    report: PredictionReport,
    inputs: Any = None,
    accuracy: Accuracy | None = None,
) -> str:
    """A prediction as one HTML page that needs nothing else: no script, no other file or host.

    Args:
        name: of the model, such as ``"resnet50"``, to be found among the published figures.
        random: the model before the prediction.
        predicted: the same model after it.
        graph: of the model.
        report: of the prediction.
        inputs: what both are called with to measure activations: a tensor, a tuple of arguments or
            a dict of keyword arguments; :func:`noise_for` makes some. Without it none are measured.
        accuracy: of the predicted model, where it was measured.

    Examples:
        >>> model = ghn_fast.adjust_net(torchvision.models.resnet18(num_classes=10))
        >>> random, graph = copy.deepcopy(model), ghn_fast.from_pretrained().graph_of(model)
        >>> _, report = ghn_fast.predict(model, graph=graph, return_report=True)
        >>> page = card("resnet18", random, model, graph, report, noise_for(model))
        >>> Path("card.html").write_text(page, encoding="utf-8") > 10_000
        True
    """
    parts = [
        f"<h1>{escape(name)}</h1><p class='summary'>{escape(str(report))}</p>",
        _accuracy(name, accuracy),
        _graph(graph, random, predicted, report),
        _filters(graph, random, predicted),
        _spread(graph, random, predicted, inputs),
        f"<h2>Parameters</h2>{report._repr_html_()}",
    ]
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(name)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _accuracy(name: str, accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return ""
    known = CIFAR10["GHN-2, published"]
    what = name if name in known else "test"
    networks = name if what == name else "the mean of its test networks of DeepNets-1M"
    after_sgd = CIFAR10["SGD of 1 epoch, published"]["test"].mean
    return (
        f"<p class='accuracy'>Top-1 on {accuracy.num_images:,} CIFAR-10 test images: "
        f"<b>{accuracy.top1:.1f} %</b>. Chance is 10 %; the published GHN-2 has "
        f"{known[what].mean} % ({networks}, arXiv 2110.13100, all 10,000 images), and one epoch of "
        f"SGD {after_sgd} % (the mean of those test networks).</p>"
    )


# The graph.


def _graph(graph: Graph, random: nn.Module, predicted: nn.Module, report: PredictionReport) -> str:
    before, after = (dict(m.named_parameters(remove_duplicate=False)) for m in (random, predicted))
    names = {id(parameter): name for name, parameter in predicted.named_parameters()}
    shades, hollow, notes = {}, [], {}
    for index, node in enumerate(graph.nodes):
        if node.parameter not in after:
            continue
        reason = report.unpredicted.get(names[id(after[node.parameter])])
        hollow += [] if reason is None else [index]
        sizes = _rms(after[node.parameter]), _rms(before[node.parameter])
        shades[index] = _shade(sizes[0])
        notes[index] = (
            f"{_note(node, reason, report)}\nroot mean square {sizes[0]:.3g}, random {sizes[1]:.3g}"
        )
    return _GRAPH.format(svg(graph, shades=shades, hollow=hollow, notes=notes))


def _note(node: Node, reason: str | None, report: PredictionReport) -> str:
    rule = report.rules.get(node.parameter or "")
    lines = [reason or ("predicted" if rule is None else f"predicted: {rule}")]
    if reason is None and node.bias in report.unpredicted:
        lines.append(f"{node.bias}: {report.unpredicted[node.bias]}")
    return "\n".join(lines)


def _rms(values: Tensor) -> float:
    return float(values.detach().cpu().abs().double().square().mean().sqrt())


def _shade(size: float) -> float:
    """From 0 to 1."""
    if not math.isfinite(size):
        return 1.0
    low, high = _DECADES
    return min(max((math.log10(max(size, 1e-30)) - low) / (high - low), 0.0), 1.0)


# The first layer.


def _filters(graph: Graph, random: nn.Module, predicted: nn.Module) -> str:
    name = next(_kernels(graph), None)
    if name is None:
        return "<h2>First layer</h2><p>No convolution looks at more than one position.</p>"
    pictures = [
        f"<figure><img alt='{kind} filters' src='{_picture(model.get_parameter(name))}'>"
        f"<figcaption>{kind}</figcaption></figure>"
        for kind, model in (("random", random), ("predicted", predicted))
    ]
    return (
        f"<h2>First layer</h2><p>The filters of {escape(name)}, at most {_MOST_FILTERS}; grey is "
        "0, and three standard deviations are the brightest.</p>"
        f"<div class='pair'>{''.join(pictures)}</div>"
    )


def _kernels(graph: Graph) -> Iterator[str]:
    """The names of kernels (out, in, height, width) in the order of the graph."""
    for node in graph.nodes:
        shape = node.shape or ()
        if node.parameter and node.type.endswith("conv") and len(shape) == 4 and max(shape[2:]) > 1:
            yield node.parameter


def _picture(kernels: Tensor) -> str:
    """A PNG as a data URI: RGB for three input channels, else the first channel alone."""
    from torchvision.utils import save_image

    chosen = kernels.detach().float().cpu()[:_MOST_FILTERS].nan_to_num()
    chosen = chosen if chosen.shape[1] == 3 else chosen[:, :1]
    limit = max(3 * float(chosen.std(correction=0)), 1e-12)
    file = io.BytesIO()
    look = {"nrow": 16, "padding": 1, "pad_value": 1.0, "normalize": True}
    save_image(chosen, file, format="png", value_range=(-limit, limit), **look)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# The signal.


def noise_for(model: nn.Module, inputs: Any = None) -> Any:
    """Inputs whose floating-point tensors are standard normal noise, the same each time.

    Args:
        model: what they are for.
        inputs: of which shapes: a tensor, a tuple of arguments or a dict of keyword arguments;
            worked out from the model where left out.

    Returns:
        What was given, or a tuple of arguments; None where no guess runs.

    Examples:
        >>> [images] = noise_for(torchvision.models.resnet18())
        >>> images.shape
        torch.Size([8, 3, 224, 224])
    """
    if inputs is None:
        with torch.no_grad(), restored(model):
            use_batch_statistics(model.eval())
            search = Search(lambda call, _: _call(model, call[0] or call[1]), may_run=lambda: False)
            found = search.first(guesses(model, _BATCH))
        inputs = None if found is None else found[0][0] or found[0][1]
    with seeded(0):
        return _noisy(inputs)


def _noisy(inputs: Any) -> Any:
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return torch.randn(inputs.shape).to(inputs)
    if isinstance(inputs, Mapping):
        return {name: _noisy(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(_noisy(value) for value in inputs)
    return inputs


@torch.no_grad()
def spreads(graph: Graph, model: nn.Module, inputs: Any) -> dict[str, float]:
    """Standard deviations of what the modules with weights give, in the order they ran.

    Batch normalisation uses the statistics of the batch. The model is left as it was.

    Args:
        graph: of the model.
        model: whose modules are watched; a container whose parts were is left out, and so is what
            returns no tensor.
        inputs: a tensor, a tuple of arguments or a dict of keyword arguments.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> found = spreads(ghn_fast.Graph.from_model(model), model, torch.randn(2, 3, 64, 64))
        >>> list(found)[:3]
        ['conv1', 'bn1', 'layer1.0.conv1']
    """
    found: dict[str, float] = {}
    owners = {node.parameter.rpartition(".")[0] for node in graph.nodes if node.parameter}
    with restored(model), ExitStack() as stack:
        for name, module in model.named_modules():
            if name in owners:
                stack.enter_context(module.register_forward_hook(partial(_watch, found, name)))
        use_batch_statistics(model.eval())
        _call(model, inputs)
    return found


def _watch(found: dict[str, float], name: str, module: nn.Module, args: Any, output: Any) -> None:
    inside = f"{name}." if name else ""
    if any(other.startswith(inside) for other in found):
        return
    # A layer may return anything, unlike a classifier.
    with suppress(AttributeError, LookupError, StopIteration):
        found.setdefault(name, float(logits_of(output).float().std()))


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*(inputs if isinstance(inputs, tuple) else (inputs,)))


def _spread(graph: Graph, random: nn.Module, predicted: nn.Module, inputs: Any) -> str:
    title = "<h2>Spread of activations</h2>"
    if inputs is None:
        return f"{title}<p>Not measured: what the model is called with is not known.</p>"
    models = {"random": random, "predicted": predicted}
    series = {kind: spreads(graph, model, inputs) for kind, model in models.items()}
    return (
        f"{title}<p>The standard deviation of what each layer gives, from the first to the last, "
        "batch normalisation by the batch. Does the signal die or explode?</p>"
        f"<div class='wide'>{_chart(series)}</div>"
    )


def _chart(series: Mapping[str, Mapping[str, float]]) -> str:
    """Lines over layers, the height logarithmic; what is 0 or not finite lies at an end."""
    logs = [math.log10(v) for line in series.values() for v in line.values() if 0 < v < math.inf]
    low, high = math.floor(min(logs, default=0.0)), math.ceil(max(logs, default=0.0))
    decades = range(low, max(high, low + 1) + 1)
    parts = [*_scale(decades)]
    for row, (kind, line) in enumerate(series.items()):
        parts.append(_line(kind, line, decades))
        left, colour = _MARGIN + 10 + 90 * row, _COLOURS[kind]
        parts.append(f"<text x='{left:.0f}' y='14' fill='{colour}'>● {kind}</text>")
    return (
        f"<svg class='spread' xmlns='http://www.w3.org/2000/svg' width='{_WIDTH:.0f}' "
        f"height='{_HEIGHT:.0f}' font-size='12'>{''.join(parts)}</svg>"
    )


def _scale(decades: Sequence[int]) -> Iterator[str]:
    for decade in decades[:: math.ceil(len(decades) / 8)]:
        y = _height(10.0**decade, decades)
        yield (
            f"<path d='M{_MARGIN} {y:.1f}H{_WIDTH}' stroke='#ddd'/><text x='{_MARGIN - 6}' "
            f"y='{y + 4:.1f}' text-anchor='end' fill='#555'>{10.0**decade:g}</text>"
        )


def _line(kind: str, values: Mapping[str, float], decades: Sequence[int]) -> str:
    step = (_WIDTH - _MARGIN - 12) / max(len(values), 1)
    points = [
        (_MARGIN + 10 + step * place, _height(value, decades), f"{name}: {kind} {value:.3g}")
        for place, (name, value) in enumerate(values.items())
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    dots = "".join(
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3'><title>{escape(title)}</title></circle>"
        for x, y, title in points
    )
    colour = _COLOURS[kind]
    return (
        f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.5'/>"
        f"<g fill='{colour}'>{dots}</g>"
    )


def _height(value: float, decades: Sequence[int]) -> float:
    """From the bottom of the chart for the lowest decade to below the legend for the highest."""
    low, high = decades[0], decades[-1]
    log = high if not math.isfinite(value) else math.log10(max(value, 10.0**low))
    return _HEIGHT - 12 - (min(log, high) - low) / (high - low) * (_HEIGHT - 40)
