"""Which models ``ghn_fast.predict`` covers: one row for each, as a Markdown table.

    python bench/coverage.py --zoo torchvision --out docs/coverage.md
    python bench/coverage.py --zoo all --out docs/coverage.md

Coverage does not depend on the GHN's weights, so a GHN-2 of random weights is used unless --config
describes another, as {"hypernet": "graphormer"} does a GHN-3, or --ghn names a trained one. What is
done is written to a file of JSON lines as it is done; a run that was broken off goes on from there,
and the table is made of all that is in the file.

The zoos: all torchvision models that are not quantised; of timm the smallest model of each family
(a family is what stands before the first underscore of the name; those larger than --max-millions
are listed as left out); transformers models built small from their configuration classes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import statistics
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ghn_fast.checkpoint import from_pretrained
from ghn_fast.ghn import GHN, GHN3Config, GHNConfig, make_ghn
from ghn_fast.ghn.place.keep import MEANINGS, is_by_design
from ghn_fast.graph import Graph
from ghn_fast.prediction import predict

CLASSES = 1000


@dataclass
class Entry:
    """A model that is still to be built."""

    zoo: str
    group: str
    name: str
    build: Callable[[], nn.Module]

    @property
    def key(self) -> str:
        return f"{self.zoo}/{self.name}"


@dataclass
class Record:
    """What predicting one model gave.

    Attributes:
        parameters: of the model, counted one by one.
        tensors: the same, counted by tensor.
        predicted: how many of the tensors the GHN decoded.
        decoded: the same, counted one by one.
        rules: {rule: how many tensors it gave}.
        unpredicted: {reason: [how many tensors, the first one's name]}.
        finite: whether all parameters are finite afterwards.
        graph_seconds: for building the graph.
        graph_megabytes: by which the process grew meanwhile, at most; 0 where this is not told.
        predict_seconds: for predicting and writing.
        error: the message, if it failed.
    """

    zoo: str
    group: str
    name: str
    parameters: int = 0
    tensors: int = 0
    predicted: int = 0
    decoded: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    unpredicted: dict[str, list[Any]] = field(default_factory=dict)
    finite: bool = True
    graph_seconds: float = 0.0
    graph_megabytes: float = 0.0
    predict_seconds: float = 0.0
    error: str = ""

    @property
    def key(self) -> str:
        return f"{self.zoo}/{self.name}"

    @property
    def complete(self) -> bool:
        """Whether all that the GHN has a node for is decoded."""
        return not self.error and self.finite and all(map(is_by_design, self.unpredicted))


# --- the zoos --------------------------------------------------------------------------------


def torchvision_models() -> Iterator[Entry]:
    from torchvision import models

    for name in models.list_models():
        builder = models.get_model_builder(name)
        parts = builder.__module__.split(".")[2:]
        if "quantization" in parts:
            continue
        group = parts[0] if len(parts) > 1 else "classification"
        yield Entry("torchvision", group, name, partial(_torchvision, name))


def _torchvision(name: str) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    package = models.get_model_builder(name).__module__
    if "detection" in package or "segmentation" in package:
        options["weights_backbone"] = None
    if "video" in package or "segmentation" in package:
        options["num_classes"] = CLASSES
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    return models.get_model(name, **options)


def timm_models(max_millions: float) -> Iterator[Entry]:
    import timm

    families = defaultdict(list)
    for name in timm.list_models():
        families[name.split("_")[0]].append(name)
    for family, names in families.items():
        name, millions = _smallest(names)
        if millions <= max_millions:
            yield Entry("timm", family, name, partial(_timm, name))
        else:
            print(f"left out: timm/{name}, {millions:.0f} M parameters", file=sys.stderr)


def _smallest(names: list[str]) -> tuple[str, float]:
    """The model of fewest parameters and how many millions it has."""
    import timm

    sizes = {}
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        sizes[name] = sum(p.numel() for p in model.parameters()) / 1e6
    name = min(sizes, key=sizes.__getitem__)
    return name, sizes[name]


def _timm(name: str) -> nn.Module:
    """With the classes that the GHN predicts, where the model is a classifier."""
    import timm

    model = timm.create_model(name)
    if getattr(model, "num_classes", 0) in (0, None, CLASSES):
        return model
    return timm.create_model(name, num_classes=CLASSES)


def transformers_models() -> Iterator[Entry]:
    import transformers as t

    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = {**text, "intermediate_size": 128, "vocab_size": 500}
    vit = {**text, "intermediate_size": 128, "image_size": 64, "patch_size": 16}
    gpt = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500}
    t5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    swin = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 7}
    convnext = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
    classes: dict[str, Any] = {"num_labels": CLASSES}

    def entry(group: str, model: str, config: str, **options: Any) -> Entry:
        def build() -> nn.Module:
            return getattr(t, model)(getattr(t, config)(**options))

        return Entry("transformers", group, model, build)

    yield entry("ViT", "ViTForImageClassification", "ViTConfig", **vit, **classes)
    yield entry("ViT", "ViTModel", "ViTConfig", **vit)
    yield entry("DeiT", "DeiTForImageClassification", "DeiTConfig", **vit, **classes)
    yield entry("DeiT", "DeiTForImageClassificationWithTeacher", "DeiTConfig", **vit, **classes)
    yield entry("Swin", "SwinForImageClassification", "SwinConfig", **swin, **classes)
    yield entry(
        "ConvNeXt", "ConvNextForImageClassification", "ConvNextConfig", **convnext, **classes
    )
    yield entry("BERT", "BertModel", "BertConfig", **bert)
    yield entry("BERT", "BertForSequenceClassification", "BertConfig", **bert, **classes)
    yield entry("BERT", "BertForMaskedLM", "BertConfig", **bert)
    yield entry("GPT-2", "GPT2LMHeadModel", "GPT2Config", **gpt)
    yield entry("T5", "T5ForConditionalGeneration", "T5Config", **t5, vocab_size=500)
    yield entry(
        "Llama", "LlamaForCausalLM", "LlamaConfig", **bert, num_key_value_heads=2, head_dim=16
    )


ZOOS = ("torchvision", "timm", "transformers")


def entries(zoo: str, max_millions: float) -> Iterator[Entry]:
    if zoo in ("torchvision", "all"):
        yield from torchvision_models()
    if zoo in ("timm", "all"):
        yield from timm_models(max_millions)
    if zoo in ("transformers", "all"):
        yield from transformers_models()


# --- one model ---------------------------------------------------------------------------------


def cover(entry: Entry, ghn: GHN) -> Record:
    """Builds a model, predicts it and says what came of it."""
    record = Record(entry.zoo, entry.group, entry.name)
    try:
        model = entry.build().eval()
        record.tensors = len(list(model.parameters()))
        record.parameters = sum(p.numel() for p in model.parameters())
        record.graph_megabytes = growth(lambda: Graph.from_model(model))
        _, report = predict(model, ghn, return_report=True)
    except Exception as error:
        record.error = f"{type(error).__name__}: {error}"
        return record
    record.predicted, record.decoded = len(report.predicted), report.num_predicted
    record.rules = dict(Counter(report.rules.values()).most_common())
    for name, reason in report.unpredicted.items():
        record.unpredicted.setdefault(reason, [0, name])[0] += 1
    record.finite = all(bool(p.isfinite().all()) for p in model.parameters())
    record.graph_seconds = report.stages["graph"]
    record.predict_seconds = report.stages["predict"]
    return record


def growth(function: Callable[[], Any]) -> float:
    """Megabytes by which the process grows while a function runs, at most; 0 but on Linux."""
    if not sys.platform.startswith("linux"):
        return 0.0
    gc.collect()
    # What was freed goes back, and the peak becomes what is in use now.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    function()
    return _memory("VmHWM") - before


def _memory(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(key + ":"))


def run(todo: Iterator[Entry], ghn: GHN, log: Path) -> None:
    """Covers what is not in the log yet, and appends it."""
    done = {record.key for record in read(log)}
    start = time.perf_counter()
    with log.open("a", encoding="utf-8") as lines:
        for entry in todo:
            if entry.key in done:
                continue
            record = cover(entry, ghn)
            lines.write(json.dumps(asdict(record)) + "\n")
            lines.flush()
            gc.collect()
            spent = time.perf_counter() - start
            result = record.error or f"{record.predicted}/{record.tensors}"
            print(f"{spent:6.0f} s  {record.key}: {result}", file=sys.stderr, flush=True)


def read(log: Path) -> list[Record]:
    if not log.exists():
        return []
    return [Record(**json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]


# --- the table ---------------------------------------------------------------------------------


def table(records: list[Record], ghn: str) -> str:
    """The whole page."""
    lines = [
        "# Coverage",
        "",
        "What `ghn_fast.predict` does with the models of three libraries, told by "
        "`bench/coverage.py`.",
        f"Predicted by {ghn}; which parameters are predicted does not depend on its weights.",
        "Of timm it is the smallest model of each family, a family being what stands before the "
        "first underscore of the name.",
        "",
        "| models | number | complete | decoded, % of parameters | answered | failed |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *_summary(records),
        "",
        "Complete: all that the GHN has a node for is decoded and finite: weights of linear layers "
        "and convolutions, biases, norms, position tables; what it has none for is kept. Answered: "
        "every parameter is decoded, or its reason given. Decoded: the mean share of a model's "
        "parameters. What the rules do is told in `ghn_fast/ghn/place/plan.py`. Times are of a "
        "single run and depend on what else the machine does; MB is by how much the process grew "
        "at most while the graph was built.",
        "",
        *_rules(records),
        *_reasons(records),
    ]
    for zoo in ZOOS:
        lines += _zoo(zoo, [record for record in records if record.zoo == zoo])
    return "\n".join(lines)


def _summary(records: list[Record]) -> Iterator[str]:
    parts: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        part = f"{record.zoo}, {record.group}" if record.zoo == "torchvision" else record.zoo
        parts[part].append(record)
    for part, members in parts.items():
        complete = sum(record.complete for record in members)
        failed = sum(bool(record.error) for record in members)
        answered = sum(not record.error and record.finite for record in members)
        shares = [100 * record.decoded / record.parameters for record in members if record.decoded]
        share = f"{statistics.mean(shares):.1f}" if shares else ""
        yield f"| {part} | {len(members)} | {complete} | {share} | {answered} | {failed} |"


def _rules(records: list[Record]) -> Iterator[str]:
    """How many tensors each rule gave, and in how many models."""
    tensors, models = Counter[str](), Counter[str]()
    for record in records:
        tensors.update(record.rules)
        models.update(record.rules.keys())
    yield "| rule | tensors | in models |"
    yield "| --- | ---: | ---: |"
    for rule, count in tensors.most_common():
        yield f"| {rule} | {count:,} | {models[rule]} |"
    yield ""


def _reasons(records: list[Record]) -> Iterator[str]:
    """How many tensors are not decoded for each reason, in how many models, and what it means."""
    tensors, models = Counter[str](), Counter[str]()
    for record in records:
        for reason, (count, _) in record.unpredicted.items():
            kind = re.sub(r"\d+", "n", reason)
            tensors[kind] += count
            models[kind] += 1
    if not tensors:
        return
    yield "| not decoded | tensors | in models | what this is |"
    yield "| --- | ---: | ---: | --- |"
    for reason, count in tensors.most_common():
        yield f"| {reason} | {count:,} | {models[reason]} | {MEANINGS.get(reason, '')} |"
    yield ""


def _zoo(zoo: str, records: list[Record]) -> list[str]:
    if not records:
        return []
    head = "| model | parameters | decoded | rules | graph, MB | graph, ms | predict, ms |"
    lines = [f"## {zoo}", "", head, "| --- | ---: | ---: | --- | ---: | ---: | ---: |"]
    for record in sorted(records, key=lambda r: (r.group, r.name)):
        rules = ", ".join(f"{rule} {count}" for rule, count in record.rules.items())
        lines.append(
            f"| {record.name} | {record.parameters:,} | {record.predicted}/{record.tensors} "
            f"| {rules} | {record.graph_megabytes:.0f} | {1000 * record.graph_seconds:.0f} "
            f"| {1000 * record.predict_seconds:.0f} |"
        )
    lines.append("")
    notes = [note for record in records for note in _notes(record)]
    return [*lines, "Not decoded:", "", *notes, ""] if notes else lines


def _notes(record: Record) -> Iterator[str]:
    if record.error:
        yield f"- {record.name}: {' '.join(record.error.split())}"
    elif not record.finite:
        yield f"- {record.name}: some parameters are not finite"
    for reason, (count, example) in record.unpredicted.items():
        yield f"- {record.name}: {count} ({example}): {reason}"


def make(name: str, config: str) -> tuple[GHN, str]:
    """The GHN that options describe, and what to call it."""
    if name:
        return from_pretrained(name), f"`{name}`"
    values = {"num_classes": CLASSES, "max_shape": (64, 64, 16, 16), **json.loads(config or "{}")}
    config_class = GHN3Config if values.get("hypernet") == "graphormer" else GHNConfig
    described = f"a GHN-2 of random weights for {CLASSES} classes"
    if config:
        described = f"a GHN of random weights of the configuration `{config}`"
    return make_ghn(config_class.from_dict(values)).eval(), described


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--zoo", choices=(*ZOOS, "all"), default="all")
    parser.add_argument("--only", default="", help="only models whose name contains this")
    parser.add_argument("--out", type=Path, help="where the table goes; printed where left out")
    parser.add_argument("--log", type=Path, default=Path("coverage.jsonl"), help="what is done")
    parser.add_argument("--ghn", default="", help="as for ghn_fast.from_pretrained")
    parser.add_argument("--config", default="", help="of a random GHN, as JSON")
    parser.add_argument("--max-millions", type=float, default=500, help="largest timm model")
    options = parser.parse_args()

    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    ghn, described = make(options.ghn, options.config)
    todo = entries(options.zoo, options.max_millions)
    run((entry for entry in todo if options.only in entry.name), ghn, options.log)
    page = table(read(options.log), described)
    if options.out is None:
        print(page)
        return
    aside = options.out.with_name(options.out.name + ".partial")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    aside.write_text(page, encoding="utf-8")
    aside.replace(options.out)


if __name__ == "__main__":
    main()
