"""What is measured of sampled networks equals what is measured of their graphs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from ghn_fast.nets import DeepNets1M
from ghn_fast.nets.stats import _of_graphs, _of_sampled, measure


@pytest.mark.parametrize("large", [False, True])
def test_core_and_graphs(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghn_fast.nets.stats._CHUNK", 5)
    nets = DeepNets1M("search", seed=2, large_images=large)
    ours, expected = asdict(_of_sampled(nets, 12, threads=2)), asdict(_of_graphs(nets, 12))
    assert ours.keys() == expected.keys()
    for name, values in ours.items():
        assert np.array_equal(values, expected[name]), name


def test_predefined_networks() -> None:
    measured = measure(DeepNets1M("predefined", large_images=True), 2)
    # ResNet-50 has 25.6 M parameters and 4.1 G multiply-adds.
    assert measured.parameters[0] == 25_557_032
    assert measured.multiply_adds[0] == pytest.approx(4.09e9, rel=0.01)
    assert measured.types.sum() == measured.nodes.sum() == measured.degrees.sum()


def test_published_files(shared: Path) -> None:
    nets = DeepNets1M(nets_dir=shared / "conformance" / "deepnets1m")
    measured = measure(nets, 20)
    assert measured.nodes[0] == 149
    with pytest.raises(ValueError, match="has 20 networks, not 21"):
        measure(nets, 21)
