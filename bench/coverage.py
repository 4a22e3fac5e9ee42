"""Which models ``ghn_fast.predict`` covers: one row for each, as a Markdown table.

    python bench/coverage.py --zoo torchvision --out docs/coverage.md
    python bench/coverage.py --zoo all --out docs/coverage.md

Coverage does not depend on the GHN's weights, so a GHN-2 of random weights is used unless --config
describes another, as {"hypernet": "graphormer"} does a GHN-3, or --ghn names a trained one. What is
done is written to a file of JSON lines as it is done; a run that was broken off goes on from there,
and the table is made of all that is in the file.

The zoos (``zoos.py``): all torchvision models that are not quantised; of timm the smallest model of
each family (a family is what stands before the first underscore of the name); all types of
transformers, built small from their configuration classes; of other libraries their classes, built
small. Of torchvision and timm none that is larger than --max-millions. They are tried in an order
drawn at random, but always the same, one of each library in turn: where a run is broken off, or
--sample takes so many of each, those done are a sample. --only "-" tries none and writes the table.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import random
import re
import statistics
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from ghn_fast._system.files import write_text
from ghn_fast.ghn import GHN, make_config, make_ghn
from ghn_fast.ghn.hub import from_pretrained
from ghn_fast.ghn.place.keep import MEANINGS as KEPT
from ghn_fast.ghn.place.keep import is_by_design
from ghn_fast.graph import Graph
from ghn_fast.graph.trace.unused import MEANINGS as UNUSED
from ghn_fast.prediction import predict

sys.path.insert(0, str(Path(__file__).parent))
from zoos import CLASSES, DIFFUSERS_INPUTS, ZOOS, Entry, NotBuilt, Unrandom, entries


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
        left_out: why there is no such model to cover.
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
    left_out: str = ""

    @property
    def key(self) -> str:
        return f"{self.zoo}/{self.name}"

    @property
    def complete(self) -> bool:
        """Whether all that the GHN has a node for is decoded."""
        return not self.error and self.finite and all(map(is_by_design, self.unpredicted))


# --- one model ---------------------------------------------------------------------------------


def cover(entry: Entry, ghn: GHN) -> Record:
    """Builds a model, predicts it and says what came of it."""
    record = Record(entry.zoo, entry.group, entry.name)
    try:
        with Unrandom():
            model = entry.build().eval()
    except NotBuilt as error:
        record.left_out = str(error)
        return record
    except Exception as error:
        record.error = f"{type(error).__name__}: {error}"
        return record
    try:
        record.tensors = len(list(model.parameters()))
        record.parameters = sum(p.numel() for p in model.parameters())
        record.graph_megabytes = growth(lambda: Graph.from_model(model, entry.inputs))
        _, report = predict(model, ghn, example_inputs=entry.inputs, return_report=True)
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


def run(todo: Iterable[Entry], ghn: GHN, log: Path) -> None:
    """Covers what is not in the log yet, and appends it."""
    done = {record.key for record in read(log)}
    start = time.perf_counter()
    gc.collect()
    gc.freeze()  # what is imported is not searched again after each model
    with log.open("a", encoding="utf-8") as lines:
        for entry in todo:
            if entry.key in done:
                continue
            record = cover(entry, ghn)
            lines.write(json.dumps(asdict(record)) + "\n")
            lines.flush()
            gc.collect()
            spent = time.perf_counter() - start
            result = record.error or record.left_out or f"{record.predicted}/{record.tensors}"
            print(f"{spent:6.0f} s  {record.key}: {result}", file=sys.stderr, flush=True)


def read(log: Path) -> list[Record]:
    if not log.exists():
        return []
    return [Record(**json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]


# --- the table ---------------------------------------------------------------------------------


def in_turn(todo: Iterable[Entry], size: int | None) -> list[Entry]:
    """At most so many of each zoo, in an order drawn at random, the zoos in turn.

    A run that is broken off has done the first of this order: a sample of each zoo.
    """
    ranked = [
        (rank, entry)
        for name, members in by_zoo(todo).items()
        for rank, entry in enumerate(random.Random(name).sample(members, len(members))[:size])
    ]
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])]


def by_zoo(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    zoos: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        zoos[entry.zoo].append(entry)
    return zoos


def begun(todo: Iterable[Entry], done: Container[str]) -> set[str]:
    """The keys of each zoo's entries before the first that is not done."""
    return {
        entry.key
        for members in by_zoo(todo).values()
        for entry in takewhile(lambda entry: entry.key in done, members)
    }


def table(records: list[Record], ghn: str, there_are: Mapping[str, int], millions: float) -> str:
    """The whole page.

    Args:
        records: of models that were tried.
        ghn: by which.
        there_are: how many models each zoo has.
        millions: parameters of the largest models that are tried, of torchvision and timm.
    """
    left_out = Counter(record.zoo for record in records if record.left_out)
    tried = Counter(record.zoo for record in records)
    records = [record for record in records if not record.left_out]
    lines = [
        "# Coverage",
        "",
        "What `ghn_fast.predict` does with the models of other libraries, told by "
        "`bench/coverage.py`; without example inputs, but for "
        f"{len(DIFFUSERS_INPUTS)} of diffusers.",
        f"Predicted by {ghn}; which parameters are predicted does not depend on its "
        "weights. With the shipped GHN small layer scales are not kept but become 0.1 "
        "(`raised_layer_scales`).",
        "",
        _extent(tried, there_are, millions) + _left_out(left_out),
        "",
        "| models | number | complete | kept, tensors | decoded, % of parameters | answered "
        "| failed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
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
        kept = sum(count for record in members for count, _ in record.unpredicted.values())
        yield (
            f"| {part} | {len(members)} | {complete} | {kept:,} | {share} | {answered} | {failed} |"
        )


_CHOSEN = {
    "timm": "Of timm it is the smallest model of each family, a family being what stands before "
    "the first underscore of the name.",
    "pytorchcv": "Of pytorchcv it is the first model of each family.",
    "transformers": "Of transformers it is the base model of each type, two layers deep.",
}


def _extent(tried: Mapping[str, int], there_are: Mapping[str, int], millions: float) -> str:
    """Which models are here, and which are not."""
    whole = [zoo for zoo, count in there_are.items() if tried.get(zoo, 0) >= count]
    parts = [f"{tried[zoo]} of {there_are[zoo]} of {zoo}" for zoo in tried if zoo not in whole]
    sentences = [f"{sum(tried.values())} models were drawn."]
    if whole:
        sentences.append(f"All of {', '.join(whole)}.")
    if parts:
        sentences.append(
            f"**Samples: {', '.join(parts)}**, drawn at random; they say nothing about the others."
        )
    if missing := [zoo for zoo in ZOOS if zoo not in tried]:
        sentences.append(f"**Not in it: {', '.join(missing)}.**")
    sentences.append(f"Of torchvision and timm those of at most {millions:g} million parameters.")
    return " ".join([*sentences, *(text for zoo, text in _CHOSEN.items() if zoo in tried)])


def _left_out(count: dict[str, int]) -> str:
    if not count:
        return ""
    parts = ", ".join(f"{number} of {zoo}" for zoo, number in count.items())
    return f" Left out, because no model could be made that is small and runs: {parts}."


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
            kind = _kind(reason)
            tensors[kind] += count
            models[kind] += 1
    if not tensors:
        return
    yield "| not decoded | tensors | in models | what this is |"
    yield "| --- | ---: | ---: | --- |"
    for reason, count in tensors.most_common():
        yield f"| {reason} | {count:,} | {models[reason]} | {_MEANINGS.get(reason, '')} |"
    yield ""


def _kind(reason: str) -> str:
    return re.sub(r"\d+", "n", reason)


_MEANINGS = {
    **{_kind(reason): meaning for reason, meaning in {**KEPT, **UNUSED}.items()},
    "output layer of n; this GHN predicts n": "the classification layer of a GHN has as many "
    "outputs as the GHN was trained for; `fit_head_` fits others to data",
}


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
    described = f"a GHN-2 of random weights for {CLASSES} classes"
    if config:
        described = f"a GHN of random weights of the configuration `{config}`"
    return make_ghn(make_config(values)).eval(), described


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--zoo", choices=(*ZOOS, "all"), default="all")
    parser.add_argument("--only", default="", help="only models whose name contains this")
    parser.add_argument("--out", type=Path, help="where the table goes; printed where left out")
    parser.add_argument("--log", type=Path, default=Path("coverage.jsonl"), help="what is done")
    parser.add_argument("--ghn", default="", help="as for ghn_fast.from_pretrained")
    parser.add_argument("--config", default="", help="of a random GHN, as JSON")
    parser.add_argument("--sample", type=int, help="at most so many models of each library")
    parser.add_argument(
        "--max-millions", type=float, default=500, help="largest of torchvision, timm"
    )
    options = parser.parse_args()

    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    ghn, described = make(options.ghn, options.config)
    every = list(entries(options.zoo, options.max_millions))
    todo = in_turn(every, options.sample)
    run((entry for entry in todo if options.only in entry.name), ghn, options.log)
    done = begun(todo, {record.key for record in read(options.log)})
    records = [record for record in read(options.log) if record.key in done]
    there_are = {zoo: len(members) for zoo, members in by_zoo(every).items()}
    page = table(records, described, there_are, options.max_millions)
    if options.out is None:
        print(page)
    else:
        write_text(options.out, page)


if __name__ == "__main__":
    main()
