from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import ghn_fast
from ghn_fast.ghn import GHN, ghn2
from tests.graphs import SmallClassifier

IMAGES = torch.zeros(1, 3, 16, 16)


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2().eval()


def test_report_names_every_parameter(ghn: GHN) -> None:
    model = SmallClassifier()
    returned, report = ghn_fast.predict(model, ghn, IMAGES, return_report=True)
    assert returned is model
    assert report.predicted == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert report.unpredicted == {}
    assert report.num_predicted == sum(p.numel() for p in model.parameters())
    assert report.rules["fc.weight"] == "class_weight"
    assert report.seconds == report.stages["graph"] + report.stages["predict"]


def test_same_model_same_parameters(ghn: GHN) -> None:
    one, two = SmallClassifier(), SmallClassifier()
    ghn_fast.predict(one, ghn, IMAGES)
    ghn_fast.predict(two, ghn, IMAGES)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_but_parameters_changes(ghn: GHN) -> None:
    model = SmallClassifier().train()
    buffers = copy.deepcopy(dict(model.named_buffers()))
    state = torch.get_rng_state()
    ghn_fast.predict(model, ghn, IMAGES)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_written_as_such(ghn: GHN, dtype: torch.dtype) -> None:
    model, single = SmallClassifier().to(dtype), SmallClassifier()
    ghn_fast.predict(model, ghn, IMAGES.to(dtype))
    ghn_fast.predict(single, ghn, IMAGES)
    for ours, theirs in zip(model.parameters(), single.parameters(), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs.to(dtype))


def test_other_memory_layouts_get_the_same_values(ghn: GHN) -> None:
    model, plain = SmallClassifier(), SmallClassifier()
    model.to(memory_format=torch.channels_last)
    model.fc.weight = nn.Parameter(torch.zeros(8, 10).t())
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    ghn_fast.predict(model, ghn, IMAGES)
    ghn_fast.predict(plain, ghn, IMAGES)
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_wrong_number_of_classes_is_reported(ghn: GHN) -> None:
    model = SmallClassifier(num_classes=7)
    before = model.fc.weight.detach().clone()
    _, report = ghn_fast.predict(model, ghn, IMAGES, return_report=True)
    assert set(report.unpredicted) == {"fc.weight", "fc.bias"}
    assert "7 classes" in report.unpredicted["fc.weight"]
    assert torch.equal(model.fc.weight, before)


def test_unused_parameter_is_reported(ghn: GHN) -> None:
    model = SmallClassifier()
    model.never_called = nn.Linear(3, 3)
    _, report = ghn_fast.predict(model, ghn, IMAGES, return_report=True)
    assert set(report.unpredicted) == {"never_called.weight", "never_called.bias"}
    assert all(report.unpredicted.values())


@pytest.fixture
def one_core() -> Iterator[None]:
    """Products that are shared among another number of cores are rounded differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_threads_at_once(ghn: GHN, one_core: None) -> None:
    def predict(model: SmallClassifier) -> None:
        torch.set_num_threads(1)
        ghn_fast.predict(model, ghn, IMAGES)

    expected = [SmallClassifier(8), SmallClassifier(24)]
    for model in expected:
        predict(model)
    found = [SmallClassifier(8) if i % 2 == 0 else SmallClassifier(24) for i in range(8)]
    threads = [threading.Thread(target=predict, args=(model,)) for model in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, model in enumerate(found):
        for a, b in zip(model.parameters(), expected[index % 2].parameters(), strict=True):
            assert torch.equal(a, b)


def test_no_parameters(ghn: GHN) -> None:
    with pytest.raises(ValueError, match="ReLU has no parameters to predict"):
        ghn_fast.predict(nn.ReLU(), ghn)


def test_meta_device(ghn: GHN) -> None:
    with pytest.raises(ValueError, match=r"'conv.weight' is on the meta device.*to_empty"):
        ghn_fast.predict(SmallClassifier().to("meta"), ghn)


def test_lazy_modules(ghn: GHN) -> None:
    with pytest.raises(ValueError, match=r"has no shape yet: call the model once"):
        ghn_fast.predict(nn.Sequential(nn.LazyLinear(3)), ghn)


def test_not_a_module(ghn: GHN) -> None:
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not list"):
        ghn_fast.predict([1], ghn)  # type: ignore[type-var]


def test_unknown_ghn() -> None:
    with pytest.raises(ValueError, match="ghn2-cifar11"):
        ghn_fast.predict(SmallClassifier(), "ghn2-cifar11")
