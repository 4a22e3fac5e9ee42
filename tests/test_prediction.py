from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import ghn_fast
from ghn_fast.checkpoint import save
from ghn_fast.ghn import GHN, ghn2
from ghn_fast.ghn.place.keep import NO_NODE
from ghn_fast.graph import TraceError
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
    assert report.unpredicted["fc.weight"] == "output layer of 7; this GHN predicts 10"
    assert torch.equal(model.fc.weight, before)


def test_an_output_layer_that_is_kept_is_warned_of_once(ghn: GHN) -> None:
    with pytest.warns(
        UserWarning, match=r"'fc\.weight' is not predicted: output layer of 7"
    ) as seen:
        ghn_fast.predict(SmallClassifier(num_classes=7), ghn, IMAGES)
    assert len(seen) == 1
    assert "ghn_fast.fit_head_" in str(seen[0].message)
    assert seen[0].filename == __file__


def test_a_report_tells_of_the_output_layer_instead(
    ghn: GHN, recwarn: pytest.WarningsRecorder
) -> None:
    ghn_fast.predict(SmallClassifier(num_classes=7), ghn, IMAGES, return_report=True)
    ghn_fast.predict(SmallClassifier(), ghn, IMAGES)
    assert not recwarn.list


@pytest.mark.parametrize("bias", [True, False])
def test_the_output_layer_has_a_decoder_of_its_own(ghn: GHN, bias: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10, bias=bias))
    _, report = ghn_fast.predict(model, ghn, torch.zeros(2, 8), return_report=True)
    assert report.rules["2.weight"] == "class_weight"
    assert report.rules.get("2.bias") == ("class_bias" if bias else None)


def test_an_auxiliary_head_is_an_ordinary_layer(ghn: GHN) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.main, self.aux = nn.Linear(8, 16), nn.Linear(16, 10), nn.Linear(16, 7)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.body(x).relu()
            return self.main(x), self.aux(x)

    _, report = ghn_fast.predict(Two(), ghn, torch.zeros(2, 8), return_report=True)
    assert (report.rules["main.weight"], report.rules["aux.weight"]) == ("class_weight", "weight")
    assert not report.unpredicted


def test_outputs_with_positions_are_decoded_whatever_their_number(ghn: GHN) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    _, report = ghn_fast.predict(model, ghn, IMAGES, return_report=True)
    assert not report.unpredicted


def test_unused_parameter_is_reported(ghn: GHN) -> None:
    model = SmallClassifier()
    model.never_called = nn.Linear(3, 3)
    _, report = ghn_fast.predict(model, ghn, IMAGES, return_report=True)
    assert set(report.unpredicted) == {"never_called.weight", "never_called.bias"}
    assert all(report.unpredicted.values())


def test_two_threads_at_once(ghn: GHN, threads: None) -> None:
    def predict(model: SmallClassifier) -> None:
        # Products that are shared among another number of cores are rounded differently.
        torch.set_num_threads(1)
        ghn_fast.predict(model, ghn, IMAGES)

    expected = [SmallClassifier(8), SmallClassifier(24)]
    for model in expected:
        predict(model)
    found = [SmallClassifier(8) if i % 2 == 0 else SmallClassifier(24) for i in range(8)]
    predicting = [threading.Thread(target=predict, args=(model,)) for model in found]
    for thread in predicting:
        thread.start()
    for thread in predicting:
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
    model = nn.Sequential(
        nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10)
    )
    model[1].eval()
    images = torch.ones(2, 3, 8, 8)
    _, report = ghn_fast.predict(model, ghn, images, return_report=True)
    assert set(report.predicted) == set(dict(model.named_parameters()))
    assert [module.training for module in model] == [True, False, True, True]
    assert torch.equal(model[1].running_mean, torch.zeros(8))
    assert model[1].num_batches_tracked == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(TraceError, match="could not be run with example_inputs"):
        ghn_fast.predict(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyLinear(3)), ghn, images[0, 0, 0])


def test_not_a_module(ghn: GHN) -> None:
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not list"):
        ghn_fast.predict([1], ghn)  # type: ignore[type-var]


@pytest.mark.parametrize("given", [torch.zeros(2, 3, 4, 4), (torch.zeros(2),), 10, {}, ghn2])
def test_inputs_in_the_place_of_the_ghn(given: Any) -> None:
    message = f"a name or a path, not {type(given).__name__}; .* is example_inputs="
    with pytest.raises(TypeError, match=message):
        ghn_fast.predict(SmallClassifier(), given)


def test_unknown_ghn() -> None:
    with pytest.raises(ValueError, match="ghn2-cifar11"):
        ghn_fast.predict(SmallClassifier(), "ghn2-cifar11")


def classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("kind", ["fake", "freed"])
def test_parameters_without_memory_of_their_own(ghn: GHN, kind: str) -> None:
    model = classifier()
    if kind == "fake":
        with FakeTensorMode():
            model[4] = nn.Linear(8, 10)
    else:
        model[4].weight.untyped_storage().resize_(0)
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"'4\.weight' .*has no memory .*before sharding"):
        ghn_fast.predict(model, ghn, IMAGES)
    assert torch.equal(model[0].weight, before)


def test_sparse_parameters_are_refused_by_name(ghn: GHN) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    model[0].weight = nn.Parameter(torch.eye(8).to_sparse())
    with pytest.raises(ValueError, match=r"'0\.weight' has the layout torch\.sparse_coo"):
        ghn_fast.predict(model, ghn, torch.zeros(2, 8))


@pytest.mark.parametrize("made", [lambda w: w[:, :1].expand(8, 8), lambda w: w[0].expand(8, 8)])
def test_expanded_parameters_are_refused_by_name(
    ghn: GHN, made: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 10))
    model[2].weight = nn.Parameter(made(torch.randn(8, 8)))
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"'2\.weight' is expanded.*clone\(\)"):
        ghn_fast.predict(model, ghn, torch.zeros(2, 8))
    assert torch.equal(model[0].weight, before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("layers", [{nn.Linear}, {nn.LSTM}])
def test_packed_weights_are_refused_by_name(ghn: GHN, layers: set[type]) -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this PyTorch quantises nothing")
    model = nn.ModuleDict({"norm": nn.LayerNorm(8), "fc": nn.Linear(8, 10), "rnn": nn.LSTM(8, 8)})
    model = torch.ao.quantization.quantize_dynamic(model, layers)
    name = "fc" if nn.Linear in layers else "rnn"
    with pytest.raises(ValueError, match=rf"module '{name}[^']*' holds quantised weights"):
        ghn_fast.predict(model, ghn, torch.zeros(2, 8))


def test_float_modules_of_quantisation_are_no_quantised_weights(ghn: GHN) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 10), nn.Linear(8, 10)
            self.add = torch.ao.nn.quantized.FloatFunctional()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            added: torch.Tensor = self.add.add(self.a(x), self.b(x))
            return added

    _, report = ghn_fast.predict(Sum(), ghn, torch.zeros(2, 8), return_report=True)
    assert len(report.predicted) == 4


@pytest.mark.parametrize("given", [True, False])
def test_autocast_makes_no_difference(ghn: GHN, given: bool) -> None:
    one, two = SmallClassifier(), SmallClassifier()
    graph = ghn_fast.Graph.from_model(two, IMAGES) if given else None
    ghn_fast.predict(one, ghn, IMAGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ghn_fast.predict(two, ghn, IMAGES, graph=graph)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_inference_tensors_are_written_in_inference_mode_only(ghn: GHN) -> None:
    with torch.inference_mode():
        model = classifier()
    with pytest.raises(ValueError, match=r"'0\.weight' was made in inference mode"):
        ghn_fast.predict(model, ghn, IMAGES)
    with torch.inference_mode():
        _, report = ghn_fast.predict(model, ghn, IMAGES, return_report=True)
    assert report.unpredicted == {}


def test_default_device_makes_no_difference(tmp_path: Path) -> None:
    """The meta device stands for a GPU: what is made there by mistake has no memory here."""
    torch.manual_seed(0)
    save(ghn2(), tmp_path / "ghn.safetensors")
    one = TokenClassifier()
    two = copy.deepcopy(one)
    ghn_fast.predict(one, tmp_path / "ghn.safetensors", IMAGES)
    with torch.device("meta"):
        ghn = ghn_fast.from_pretrained(tmp_path / "ghn.safetensors")
        ghn_fast.predict(two, ghn, IMAGES)
    for (name, expected), found in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(found, expected), name


class TokenClassifier(nn.Module):
    """With parameters that are not decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(len(x), -1, -1), x), dim=1)
        logits: torch.Tensor = self.fc(self.recurrent(self.norm(x))[0][:, 0])
        return logits


def test_a_file_that_was_replaced_is_loaded_anew(tmp_path: Path) -> None:
    path = tmp_path / "ghn.safetensors"
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        save(ghn2(), path)
        results.append(ghn_fast.predict(classifier(), path, IMAGES)[0].weight.detach())
        again = ghn_fast.predict(classifier(), path, IMAGES)[0].weight.detach()
        assert torch.equal(again, results[-1])
    assert not torch.equal(*results)


def test_graph_of_another_network(ghn: GHN) -> None:
    with_bias, without = classifier(), classifier()
    with_bias[2] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.GroupNorm(2, 8))
    without[2] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.GroupNorm(2, 8))
    without[2][1].bias = None
    before = without[0].weight.detach().clone()
    graph = ghn_fast.Graph.from_model(with_bias, IMAGES)
    with pytest.raises(ValueError, match=r"parameter '2\.1\.bias', which the model has not"):
        ghn_fast.predict(without, ghn, graph=graph)
    assert torch.equal(without[0].weight, before)
    graph, before = ghn_fast.Graph.from_model(without, IMAGES), with_bias[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"parameter '2\.1\.bias', which the graph has not"):
        ghn_fast.predict(with_bias, ghn, graph=graph)
    assert torch.equal(with_bias[0].weight, before)


def test_a_graph_of_given_nodes_may_leave_parameters_out(ghn: GHN) -> None:
    model = classifier()
    traced = ghn_fast.Graph.from_model(model, IMAGES)
    first, conv, *others = traced.nodes
    nodes = (first, replace(conv, parameter=None), *others)
    given = ghn_fast.Graph(nodes, traced.edges)
    _, report = ghn_fast.predict(model, ghn, graph=given, return_report=True)
    assert report.unpredicted == {"0.weight": NO_NODE}


class VectorClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3)
        self.weight = nn.Parameter(torch.randn(10))
        self.bias = nn.Parameter(torch.randn(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).mean((2, 3))
        return nn.functional.linear(x, self.weight.view(10, 1), self.bias)


def test_classifier_whose_weight_is_a_vector(ghn: GHN) -> None:
    _, report = ghn_fast.predict(VectorClassifier(), ghn, IMAGES, return_report=True)
    assert report.unpredicted == {}
    assert report.rules["weight"] == "bias"


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_called_as_what_they_wrap(
    ghn: GHN, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    class Inception3(nn.Module):
        """Named as torchvision's, whose input has 299 pixels."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten())
            self.fc = nn.Linear(4 * 149 * 149, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.fc(self.layers(x))
            return logits

    _, report = ghn_fast.predict(wrap(Inception3()), ghn, return_report=True)
    assert len(report.predicted) == 4
    assert report.unpredicted == {}


def test_what_is_no_classifier_is_said_to_be_none() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, 2))
    with pytest.warns(UserWarning, match="no output layer of a classifier was found"):
        ghn_fast.predict(copy.deepcopy(encoder))
    _, report = ghn_fast.predict(encoder, return_report=True)
    assert str(report).splitlines()[-1] == report.note
    _, report = ghn_fast.predict(SmallClassifier(), return_report=True)
    assert not report.note
