"""Classifiers fitted to 32 x 32 images."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from ghn_fast.nets import adjust_net

# The height and width of the last feature map: the downsampling that is left.
FEATURE_SIZES = {
    "resnet18": ("layer4", 4),
    "resnext50_32x4d": ("layer4", 4),
    "densenet121": ("features", 4),
    "mobilenet_v2": ("features", 8),
    "mobilenet_v3_small": ("features", 16),
    "efficientnet_b0": ("features", 8),
    "vgg11": ("features", 4),
    "alexnet": ("features", 5),
    "squeezenet1_1": ("features", 7),
    "mnasnet0_5": ("layers", 2),
    "shufflenet_v2_x0_5": ("conv5", 2),
    "googlenet": ("inception5b", 2),
    "inception_v3": ("Mixed_7c", 5),
    "convnext_tiny": ("features", 3),
}


@pytest.mark.parametrize("name", sorted(FEATURE_SIZES))
def test_resolution_that_is_left(name: str) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        model = models.get_model(name, weights=None, num_classes=10, **options).eval()
        layer, size = FEATURE_SIZES[name]
        sizes: list[tuple[int, ...]] = []
        assert adjust_net(model) is model
        model.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output: sizes.append(tuple(output.shape[2:]))
        )
        logits = model(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    assert sizes == [(size, size)]
    assert model.expected_input_sz == 32


def test_regnet() -> None:
    model = adjust_net(models.regnet_x_400mf(num_classes=10))  # its constructor needs memory
    features = model.trunk_output(model.stem(torch.zeros(2, 3, 32, 32)))
    assert features.shape[2:] == (4, 4)


def test_swin_runs_on_small_images() -> None:
    with torch.device("meta"):
        model = adjust_net(models.swin_t(num_classes=10))
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_first_convolution_keeps_its_centre() -> None:
    model = models.resnet18(num_classes=10)
    centre = model.conv1.weight[:, :, 2:5, 2:5].clone()
    adjust_net(model)
    assert torch.equal(model.conv1.weight, centre)
    assert (model.conv1.kernel_size, model.conv1.stride, model.conv1.padding) == (
        (3, 3), (1, 1), (1, 1))  # fmt: skip
    adjust_net(model)  # once more changes nothing
    assert torch.equal(model.conv1.weight, centre)


def test_large_input_changes_only_the_expected_size() -> None:
    model = models.resnet18(num_classes=10)
    adjust_net(model, large_input=True)
    assert model.expected_input_sz == 224
    assert model.conv1.kernel_size == (7, 7)
    assert isinstance(model.maxpool, nn.MaxPool2d)


def test_a_family_without_a_rule_loses_its_first_strides() -> None:
    model = adjust_net(nn.Sequential(*(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(5))))
    assert model(torch.zeros(1, 3, 32, 32)).shape[2:] == (4, 4)
    assert model.expected_input_sz == 32


def test_a_model_that_cannot_be_fitted_gives_a_warning() -> None:
    flat = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.Flatten(), nn.Linear(32, 10))
    with pytest.warns(UserWarning, match="the strides of Sequential cannot be fitted"):
        model = adjust_net(flat)
    assert model.expected_input_sz == 32


def test_vision_transformer_for_large_images_is_refused() -> None:
    with torch.device("meta"):
        large = models.vit_b_16()
        small = models.VisionTransformer(32, 4, 2, 4, 64, 128, num_classes=10)
    with pytest.raises(ValueError, match="made for images of size 224"):
        adjust_net(large)
    assert adjust_net(small).expected_input_sz == 32
