"""Fits the stems of classifiers to 32 x 32 images (arXiv 2110.13100, section 5.1)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ghn_fast.nets.space.strides import lower_strides, remove_strides

SMALL_SIZE = 32


def adjust_net(model: nn.Module, large_input: bool = False) -> nn.Module:
    """Lowers the downsampling of a classifier's first layers, in place.

    Sets `model.expected_input_sz` to 32, or only that, to 224, with `large_input`. torchvision's
    families have rules of their own: ResNets and DenseNets get a 3 x 3 first convolution, the
    centre of the one they had. Any other model loses the strides of its first layers until 32
    pixels leave a feature map behind; one that cannot is left as it is, with a warning.

    Returns:
        The same model.

    Raises:
        ValueError: a vision transformer whose position table was made for other images.

    Examples:
        >>> model = ghn_fast.adjust_net(torchvision.models.resnet18(num_classes=10))
        >>> model.conv1.kernel_size, model.expected_input_sz
        ((3, 3), 32)
    """
    if not large_input:
        (_find_rule(model) or _adjust_strides)(model)
    model.expected_input_sz = 224 if large_input else SMALL_SIZE  # type: ignore[assignment]
    return model


def _adjust_strides(model: nn.Module) -> None:
    if not lower_strides(model, SMALL_SIZE):
        warnings.warn(
            f"the strides of {type(model).__name__} cannot be fitted to 32x32 images: it is used "
            "unchanged, which may lower its accuracy",
            stacklevel=3,
        )


def _find_rule(model: nn.Module) -> Callable[[Any], None] | None:
    from torchvision import models

    rules: list[tuple[type[nn.Module], Callable[[Any], None]]] = [
        (models.ResNet, _adjust_resnet),
        (models.DenseNet, _adjust_densenet),
        (models.MobileNetV2, _adjust_mobilenet),
        (models.MobileNetV3, _adjust_mobilenet),
        (models.EfficientNet, _adjust_efficientnet),
        (models.VGG, _adjust_vgg),
        (models.AlexNet, _adjust_alexnet),
        (models.SqueezeNet, _adjust_squeezenet),
        (models.MNASNet, _adjust_mnasnet),
        (models.ShuffleNetV2, _adjust_shufflenet),
        (models.GoogLeNet, _adjust_googlenet),
        (models.Inception3, _adjust_inception),
        (models.RegNet, _adjust_regnet),
        (models.ConvNeXt, _adjust_patch_stem),
        (models.SwinTransformer, _adjust_patch_stem),
        (models.VisionTransformer, _check_transformer),
        (models.MaxVit, _refuse_maxvit),
    ]
    return next((rule for family, rule in rules if isinstance(model, family)), None)


def _adjust_resnet(model: Any) -> None:
    _shrink_first_conv(model.conv1)
    model.maxpool = nn.Identity()


def _adjust_densenet(model: Any) -> None:
    _shrink_first_conv(model.features.conv0)
    model.features.pool0 = nn.Identity()


def _adjust_mobilenet(model: Any) -> None:
    remove_strides(model.features[:5])


def _adjust_efficientnet(model: Any) -> None:
    # Leaves two halvings, as in MobileNets, whose blocks these are.
    remove_strides(model.features[:4])


def _adjust_vgg(model: Any) -> None:
    for position, layer in enumerate(model.features[:10]):
        if isinstance(layer, nn.MaxPool2d):
            model.features[position] = nn.Identity()


def _adjust_alexnet(model: Any) -> None:
    model.features[0].stride = (1, 1)
    model.features[2] = nn.Identity()


def _adjust_squeezenet(model: Any) -> None:
    model.features[0].stride = (1, 1)
    model.features[2] = nn.Identity()


def _adjust_mnasnet(model: Any) -> None:
    model.layers[0].stride = (1, 1)


def _adjust_shufflenet(model: Any) -> None:
    # The first convolution keeps its stride, as in the published results.
    model.maxpool = nn.Identity()


def _adjust_googlenet(model: Any) -> None:
    # The first convolution keeps its stride, as in the published results.
    model.maxpool1 = nn.Identity()


def _adjust_inception(model: Any) -> None:
    model.Conv2d_1a_3x3.conv.stride = (1, 1)
    model.maxpool1 = nn.Identity()
    model.maxpool2 = nn.Identity()
    # The auxiliary head, used in training only, needs feature maps of 17 x 17.
    model.aux_logits = False
    model.AuxLogits = None


def _adjust_regnet(model: Any) -> None:
    remove_strides([model.stem, model.trunk_output[0]])


def _adjust_patch_stem(model: Any) -> None:
    model.features[0][0].stride = (1, 1)


def _check_transformer(model: Any) -> None:
    if model.image_size != 32:
        raise ValueError(
            f"this vision transformer is made for images of size {model.image_size}; construct it "
            "with image_size=32, for example VisionTransformer(image_size=32, patch_size=4, ...)"
        )


def _refuse_maxvit(model: Any) -> None:
    raise ValueError(
        "MaxViT fixes its input size when it is constructed: construct MaxVit with "
        "input_size=(32, 32) and a partition size that divides its feature maps"
    )


def _shrink_first_conv(conv: nn.Conv2d, kernel: int = 3) -> None:
    """Keeps the central kernel x kernel weights, without stride."""
    height, width = conv.kernel_size
    top, left = (height - kernel) // 2, (width - kernel) // 2
    if top < 0 or left < 0:
        raise ValueError(f"the first convolution is {height}x{width}, smaller than 3x3")
    with torch.no_grad():
        centre = conv.weight[:, :, top : top + kernel, left : left + kernel].clone()
    conv.weight = nn.Parameter(centre, requires_grad=conv.weight.requires_grad)
    conv.kernel_size = (kernel, kernel)
    conv.padding = (kernel // 2, kernel // 2)
    conv.stride = (1, 1)
