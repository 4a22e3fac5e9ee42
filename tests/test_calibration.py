"""Batch-norm statistics: exact, of any loader, and nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ghn_fast


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4)),
    )


def _images(count: int = 37) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 3 + 1


def _loader(count: int = 37, batch_size: int = 8) -> DataLoader[Any]:
    labels = torch.arange(count) % 4
    return DataLoader(TensorDataset(_images(count), labels), batch_size)


def test_first_layer_gets_the_moments_of_all_values() -> None:
    model = ghn_fast.calibrate_(_network(), _loader())
    fed = model[0](_images()).detach().double()
    torch.testing.assert_close(model[1].running_mean.double(), fed.mean((0, 2, 3)))
    variance = fed.var((0, 2, 3), correction=1)
    torch.testing.assert_close(model[1].running_var.double(), variance)
    assert int(model[1].num_batches_tracked) == 5


def test_one_batch_gives_what_training_mode_gives() -> None:
    model, trained = _network(), _network()
    for norm in (1, 4, 9):
        trained[norm].momentum = 1.0
    trained(_images())
    ghn_fast.calibrate_(model, _images())
    for norm in (1, 4, 9):
        torch.testing.assert_close(model[norm].running_mean, trained[norm].running_mean)
        torch.testing.assert_close(model[norm].running_var, trained[norm].running_var)


def test_layer_by_layer_each_norm_fits_what_it_is_fed_in_use() -> None:
    images = _images()

    def misfit(model: nn.Sequential) -> float:
        """How far the last norm's mean is from that of its input in evaluation mode."""
        fed = model.eval()[:9](images).detach().mean(0)
        return float((fed - model[9].running_mean).abs().max())

    plain = ghn_fast.calibrate_(_network(), _loader(batch_size=3))
    layered = ghn_fast.calibrate_(_network(), _loader(batch_size=3), layer_by_layer=True)
    assert misfit(layered) < 1e-6 < 1e-3 < misfit(plain)
    torch.testing.assert_close(plain[1].running_var, layered[1].running_var)


def test_norm_that_is_used_twice_sees_both_layer_by_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
            self.between = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.last(self.between(self.norm(self.first(x)))))

    x = torch.randn(32, 4)
    one, other = Twice(), Twice()
    other.load_state_dict(one.state_dict())
    ghn_fast.calibrate_(one, [x], layer_by_layer=True)
    ghn_fast.calibrate_(other, [x])
    assert int(one.norm.num_batches_tracked) == 1
    # The first input counts half, the second the other half.
    half = one.first(x).mean(0) / 2
    assert not torch.allclose(one.norm.running_mean, 2 * half)
    torch.testing.assert_close(one.norm.running_mean, other.norm.running_mean)


def test_a_norm_that_is_called_by_name() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(input=x)

    named, plain = ByName(), nn.BatchNorm2d(3)
    ghn_fast.calibrate_(named, _loader())
    ghn_fast.calibrate_(plain, _loader())
    assert torch.equal(named.norm.running_mean, plain.running_mean)


def test_nothing_else_changes() -> None:
    model = _network()
    model[4].eval()
    model[1].momentum = 0.3
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    running = model[1].running_mean
    ghn_fast.calibrate_(model, _loader())
    assert [module.training for module in model.modules()] == modes
    assert model[1].running_mean is running
    assert model[1].momentum == 0.3
    assert not any(module._forward_pre_hooks for module in model.modules())
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert all("running" in name or "num_batches" in name for name in changed)
    assert len(changed) == 9


def test_norms_without_statistics_get_them_and_unused_ones_keep_theirs() -> None:
    model = _network()
    model[1] = nn.BatchNorm2d(8, track_running_stats=False)
    model[9].unused = nn.BatchNorm1d(3)
    kept = model[9].unused.running_mean.clone()
    ghn_fast.calibrate_(model, _loader()).eval()
    assert model[1].running_var is not None
    assert model[1].track_running_stats
    assert torch.equal(model[9].unused.running_mean, kept)
    one = model(_images()[:1])
    torch.testing.assert_close(model(_images())[:1], one)


@pytest.mark.parametrize("kind", ["inputs", "pairs", "dictionaries", "tensor", "generator"])
def test_any_loader(kind: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.norm(pixel_values)

    images, labels = _images(8), torch.arange(8)
    loaders: dict[str, Any] = {
        "inputs": [images[:4], images[4:]],
        "pairs": [(images[:4], labels[:4]), [images[4:], labels[4:]]],
        "dictionaries": [{"pixel_values": images, "labels": labels}],
        "tensor": images,
        "generator": (part for part in images.split(3)),
    }
    model = ghn_fast.calibrate_(Named(), loaders[kind])
    torch.testing.assert_close(model.norm.running_mean, images.mean((0, 2, 3)))


class _Arguments(nn.Module):
    """Whose forward takes more than its first argument."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor, y: Tensor | None = None, **others: Tensor) -> Tensor:
        return self.norm(x if y is None else x + y)


@pytest.mark.parametrize("label", ["label", "labels", "target", "targets", "y", None])
@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel, torch.compile])
def test_the_one_tensor_of_a_dictionary_may_have_any_name(label: str | None, wrap: Any) -> None:
    norm, images = nn.BatchNorm2d(3), _images(8)
    batch = {} if label is None else {label: torch.arange(8)}
    ghn_fast.calibrate_(wrap(norm), [batch | {"image": images}])
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)))


@pytest.mark.parametrize("names", [("x", "y"), ("x",), ("image",)])
def test_arguments_of_a_model_are_no_labels(names: tuple[str, ...]) -> None:
    images, model = _images(8), _Arguments()
    ghn_fast.calibrate_(model, [dict.fromkeys(names, images) | {"label": torch.arange(8)}])
    torch.testing.assert_close(model.norm.running_mean, len(names) * images.mean((0, 2, 3)))


@pytest.mark.parametrize("how", ["torch.compile", "in place"])
def test_a_compiled_model_that_has_run_is_calibrated_and_stays_compiled(how: str) -> None:
    """What was compiled before there were hooks does not run them."""
    plain, model = _network(), _network()
    compiled: Any = model
    if how == "torch.compile":
        compiled = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
    compiled.eval()
    with torch.no_grad():
        compiled(_images())
    ghn_fast.calibrate_(plain, _loader())
    ghn_fast.calibrate_(compiled, _loader())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    with torch.no_grad():
        torch.testing.assert_close(compiled(_images()), plain.eval()(_images()))


def test_a_last_batch_of_one_value_is_taken_in() -> None:
    images = _images(9)
    model = ghn_fast.calibrate_(_network(), [images[:8], images[8:]])
    fed = model[0](images).detach()
    torch.testing.assert_close(model[1].running_mean, fed.mean((0, 2, 3)))
    assert model[9].running_var.isfinite().all()


def test_models_that_scale_whole_numbers_themselves_are_fed_them() -> None:
    class Scaling(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.float() / 255)

    pixels = torch.randint(256, (8, 3, 4, 4), dtype=torch.uint8)
    model = ghn_fast.calibrate_(Scaling(nn.BatchNorm2d(3)), pixels)
    torch.testing.assert_close(model[0].running_mean, (pixels / 255).mean((0, 2, 3)))
    with pytest.raises(RuntimeError, match="should contain 2 elements"):
        ghn_fast.calibrate_(Scaling(nn.BatchNorm2d(3)), pixels[:, :2])


def test_half_precision_and_large_means_do_not_lose_the_variance() -> None:
    norm = nn.BatchNorm1d(2).double()
    values = torch.randn(64, 2, dtype=torch.float64) + 1e6
    ghn_fast.calibrate_(norm, list(values.split(5)))
    torch.testing.assert_close(norm.running_var, values.var(0), rtol=1e-6, atol=0)
    half = nn.BatchNorm1d(2).half()
    fed = (torch.randn(64, 2) * 3).half()
    ghn_fast.calibrate_(half, [fed])
    assert half.running_var.dtype == torch.float16
    torch.testing.assert_close(half.running_var, fed.double().var(0).half())


@pytest.mark.parametrize(
    ("loader", "layered", "message"),
    [
        ([], False, "empty"),
        (iter([]), False, "iterator gives no batch: .* pass a list of batches or a DataLoader"),
        (iter([torch.zeros(2, 3, 12, 12)]), True, "read only once"),
        ([torch.full((2, 3, 12, 12), torch.nan)], False, "1 is fed"),
        (["text"], False, "gave a str"),
        ([(np.zeros((2, 3)), [0, 1])], False, "gave a tuple of ndarray, list; it has"),
        ([((torch.zeros(2, 3), {}), [0, 1])], False, "gave a tuple of tuple, list; it has"),
        (TensorDataset(_images(2)), False, "TensorDataset gives items one by one"),
        ([tuple(_images(3))], False, "gave a tuple of Tensor, Tensor, Tensor; it has"),
        (
            [{"image": _images(2), "path": ["a", "b"], "label": torch.arange(2)}],
            False,
            "gave a dictionary with image, path, and the model takes input$",
        ),
        ([{"image": ["a", "b"], "label": torch.arange(2)}], False, "dictionary with image, and"),
        ([_images(2).byte()], False, "^pictures are uint8: scale and normalise them"),
        ([{"image": _images(2).long()}], False, "^pictures are int64: scale and normalise them"),
        (
            [_images(2).double()],
            False,
            r"^inputs are float64, and the model's parameters float32: .* as inputs\.to\(torch\.fl",
        ),
        ([_images(2).half()], False, "^inputs are float16, and the model's parameters float32"),
        ([_images(1)], False, "^what 9 is fed is one value of each channel"),
    ],
)
def test_what_cannot_be_calibrated_leaves_the_model(
    loader: Any, layered: bool, message: str
) -> None:
    model = _network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError), match=message):
        ghn_fast.calibrate_(model, loader, layer_by_layer=layered)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_calibrated_prediction_has_logits_of_a_usual_size() -> None:
    from torchvision.models import resnet18

    model = ghn_fast.predict(resnet18(num_classes=10))
    images = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = float(model.eval()(images).abs().max())
        after = float(ghn_fast.calibrate_(model, images)(images).abs().max())
    assert before > 1000 > 100 > after
