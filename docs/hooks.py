"""What mkdocs does to the pages: names marked as for Sphinx, files of the root, the gallery."""

from __future__ import annotations

import copy
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ROLE = re.compile(r":(?:func|class|meth|data|mod|attr|exc):<code>~?")
HISTORY = "<!-- history -->"
FAMILY_MEMBERS = {"convnext": 1, "inception": 0}
"""Of families, and the index of one of each."""


def on_page_content(html: str, **_: Any) -> str:
    return ROLE.sub("<code>", html)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    if page.file.src_uri == "contributing.md":
        # Its links are from the root of the repository, as GitHub shows it.
        return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
    if HISTORY not in markdown:
        return markdown
    history = _history()
    return markdown.replace(HISTORY, "\n".join(history.page(history.records())))


def on_files(files: Files, config: MkDocsConfig) -> None:
    for name, content in _gallery():
        files.append(File.generated(config, f"gallery/{name}", content=content))
    history = _history()
    drawing = history.drawing(history.records())
    files.append(File.generated(config, "history/limits.svg", content=drawing))


def _history() -> Any:
    """The module ``bench/history.py``."""
    bench = str(ROOT / "bench")
    if bench not in sys.path:
        sys.path.append(bench)
    return importlib.import_module("history")


def _gallery() -> Iterator[tuple[str, str]]:
    """Pictures of graphs and a page of a prediction, as their commands make them."""
    import torchvision

    import ghn_fast
    from ghn_fast.card import card, noise_for
    from ghn_fast.graph.draw import svg
    from ghn_fast.nets.families import sample_member

    yield "val-7.svg", svg(ghn_fast.DeepNets1M("val", 0, 8)[7])
    for family, index in FAMILY_MEMBERS.items():
        member = sample_member("families/val", 0, index, family=family)
        yield f"{family}.svg", svg(member.graph)
    model = ghn_fast.adjust_net(torchvision.models.resnet18(num_classes=10))
    random = copy.deepcopy(model)
    graph = ghn_fast.from_pretrained().graph_of(model)
    predicted, report = ghn_fast.predict(model, "ghn2-cifar10", graph=graph, return_report=True)
    yield "resnet18.svg", svg(graph)
    page = card("resnet18", random, predicted, graph, report, noise_for(random))
    yield "resnet18-card.html", page
