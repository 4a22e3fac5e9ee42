from __future__ import annotations

import base64
import copy
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models

import ghn_fast
from ghn_fast.card import Accuracy, card, noise_for, spreads
from ghn_fast.cli import main
from ghn_fast.graph import Graph
from ghn_fast.graph.draw.style import style_of
from ghn_fast.nets import build_net, sample_net_args
from tests.graphs import SmallClassifier

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
VOID = ("meta", "img", "br")


class Page(HTMLParser):
    """A page that closes what it opens; its nodes by their title, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.nodes: dict[str, list[str]] = {}
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attributes}
        self.sources += [known[name] for name in ("src", "href") if name in known]
        self.open += [] if tag in VOID else ["node" if known.get("class") == "node" else tag]
        if "node" in self.open and "fill" in known:
            self.nodes[self.title].append(known["fill"])

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() in (tag, "node")

    def handle_data(self, data: str) -> None:
        if self.open[-2:] == ["node", "title"]:
            self.title = data
            self.nodes[data] = []


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return SmallClassifier()


@pytest.fixture(scope="module")
def page(model: nn.Module) -> str:
    predicted = copy.deepcopy(model)
    graph = ghn_fast.from_pretrained().graph_of(predicted)
    _, report = ghn_fast.predict(predicted, graph=graph, return_report=True, keep="bn")
    for layer, size in ((predicted.conv, 1.5), (predicted.fc, 0.1)):
        layer.weight.data *= size / layer.weight.data.square().mean().sqrt()
    inputs = noise_for(model)
    return card("<resnet>", model, predicted, graph, report, inputs, Accuracy(43.21, 1000))


def test_every_node_appears_and_kept_ones_are_hollow(page: str, model: nn.Module) -> None:
    nodes, graph = Page(page).nodes, Graph.from_model(model)
    assert [title.split("\n")[0] for title in nodes] == [node.name for node in graph.nodes]
    for (title, fills), node in zip(nodes.items(), graph.nodes, strict=True):
        assert (fills[0] == "white") == (node.name == "bn.weight")
        shape = " x ".join(map(str, node.shape or ()))
        assert shape in title
        if node.name == "bn.weight":
            assert "kept: as asked (keep='bn')" in title
        elif node.parameter:
            assert "predicted: " in title
            is_full = fills[0] == style_of(node).colour
            assert is_full == (node.name == "conv.weight") == ("root mean square 1.5," in title)


def test_page_fetches_nothing_and_escapes_names(page: str) -> None:
    assert "<h1>&lt;resnet&gt;</h1>" in page
    assert "<resnet>" not in page
    sources = Page(page).sources
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert set(re.findall(r"https?://[^'\" ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page


def test_names_of_modules_are_escaped() -> None:
    class Odd(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs).mean((2, 3))

    model = Odd()
    model.add_module("a<b>&'c'", nn.Conv2d(3, 8, 3))
    graph = ghn_fast.from_pretrained().graph_of(model)
    report = ghn_fast.predict(copy.deepcopy(model), graph=graph, return_report=True)[1]
    text = card("odd", model, model, graph, report, torch.randn(2, 3, 8, 8))
    assert "a<b>" not in text
    assert escape("a<b>&'c'.weight") in text
    assert any(title.startswith("a<b>&'c'.weight\n") for title in Page(text).nodes)


def test_filters_are_pictures_of_the_first_layer(page: str) -> None:
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))
        for source in Page(page).sources
    ]
    assert all(picture.shape == (5, 33, 3) for picture in pictures)  # 8 of 3 x 3, in a row
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50", "the published GHN-2 has 58.6 % (resnet50,"),
        ("val:3", "the published GHN-2 has 66.9 % (the mean of its test networks"),
    ],
)
def test_accuracy_stands_beside_chance_and_the_published(
    model: nn.Module, name: str, words: str
) -> None:
    graph, report = Graph.from_model(model), ghn_fast.prediction.PredictionReport()
    text = card(name, model, model, graph, report, accuracy=Accuracy(43.21, 1000))
    assert words in text
    assert "1,000 CIFAR-10 test images: <b>43.2 %</b>. Chance is 10 %" in text
    assert "one epoch of SGD 46.9 % (the mean of those test networks)" in text
    assert "Top-1" not in card(name, model, model, graph, report)


def test_spreads_are_those_of_the_outputs_and_the_model_is_left() -> None:
    model = SmallClassifier().train()
    images = torch.randn(4, 3, 8, 8)
    graph, before = Graph.from_model(model), copy.deepcopy(model.state_dict())
    found = spreads(graph, model, images)
    assert list(found) == ["conv", "bn", "fc"]
    assert found["conv"] == pytest.approx(float(model.conv(images).detach().std()), rel=1e-5)
    assert found["bn"] == pytest.approx(1.0, rel=0.01)  # by the batch
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.conv._forward_hooks


@dataclass
class Features:
    map: Tensor


class Stem(nn.Module):
    """Owns a weight and returns no tensor."""

    def __init__(self, returned: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.returned = returned

    def forward(self, images: Tensor) -> Any:
        self.features = nn.functional.conv2d(images, self.weight)
        return self.returned(self.features)


@pytest.mark.parametrize("returned", [Features, lambda _: None, lambda _: (), lambda _: {}])
def test_a_layer_that_returns_no_tensor_is_left_out(returned: Callable[[Tensor], Any]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Stem(returned)
            self.fc = nn.Linear(4, 10)

        def forward(self, images: Tensor) -> Tensor:
            self.stem(images)
            return self.fc(self.stem.features.mean((2, 3)))

    model, images = Model(), torch.randn(2, 3, 8, 8)
    graph = Graph.from_model(model, images)
    assert any(node.parameter == "stem.weight" for node in graph.nodes)
    assert list(spreads(graph, model, images)) == ["fc"]


def test_a_signal_that_dies_or_explodes_is_drawn(model: nn.Module) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.conv.weight.zero_()
        broken.fc.weight.fill_(torch.inf)
    graph, report = Graph.from_model(model), ghn_fast.prediction.PredictionReport()
    text = card("x", model, broken, graph, report, torch.randn(2, 3, 8, 8))
    assert "conv: predicted 0<" in text
    assert "fc: predicted nan<" in text
    assert "cy='nan'" not in text


def test_noise_is_of_the_shapes_given() -> None:
    model = SmallClassifier()
    images, ids = torch.zeros(2, 3, 9, 9), torch.arange(6)
    noisy = noise_for(model, {"images": images, "ids": ids})
    assert noisy["images"].shape == images.shape
    assert float(noisy["images"].std()) == pytest.approx(1.0, abs=0.2)
    assert noisy["ids"] is ids
    assert torch.equal(noisy["images"], noise_for(model, {"images": images})["images"])
    assert noise_for(_Unknown()) is None


class _Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        raise ValueError("takes nothing")


def test_command_line_writes_a_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "card.html"
    name = "tests.graphs:SmallClassifier"
    options = ["--no-small-images", "--fill", "--card", str(out)]
    monkeypatch.setattr(sys, "argv", ["ghn-fast", "predict", name, *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert f"wrote {out}" in capsys.readouterr().out
    assert len(Page(out.read_text()).nodes) == Graph.from_model(SmallClassifier()).num_nodes


def _small_card() -> str:
    model = SmallClassifier()
    return _card("small", model, torch.randn(2, 3, 8, 8))


def _card(name: str, model: nn.Module, inputs: Tensor) -> str:
    predicted = copy.deepcopy(model)
    ghn = ghn_fast.from_pretrained()
    _, report = ghn_fast.predict(predicted, ghn, inputs, return_report=True)
    return card(name, model, predicted, Graph.from_model(model, inputs), report, inputs)


CARDS: dict[str, Callable[[], str]] = {
    "small": _small_card,
    "resnet50": lambda: _card(
        "resnet50", ghn_fast.adjust_net(models.resnet50(num_classes=10)), torch.randn(2, 3, 32, 32)
    ),
    "vit": lambda: _card(
        "vit",
        models.VisionTransformer(32, 4, 6, 3, 96, 192, num_classes=10),
        torch.randn(2, 3, 32, 32),
    ),
    "sampled": lambda: _card(
        "val:3", build_net(sample_net_args("val", 0, 3), 10, False), torch.randn(2, 3, 32, 32)
    ),
}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("name", CARDS)
def test_card_opens_in_a_browser(name: str, tmp_path: Path) -> None:
    file, picture = tmp_path / "card.html", tmp_path / "card.png"
    file.write_text(CARDS[name]())
    command = (
        f"{CHROMIUM} --headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        f"--user-data-dir={tmp_path / 'profile'} --window-size=1240,1400 --screenshot={picture} "
        f"{file.as_uri()}"
    )
    subprocess.run(command.split(), check=True, capture_output=True, timeout=120)
    colours = {
        tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour in ("#e4572e", "#8a8a8a")
    }
    shown = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    assert colours <= {tuple(pixel) for pixel in np.unique(shown, axis=0).tolist()}
