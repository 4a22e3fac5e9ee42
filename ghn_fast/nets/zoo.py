"""The networks that people take off the shelf, for 32 x 32 images: the split "zoo"."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

from torch import nn

from ghn_fast.nets.space.adjust import SMALL_SIZE, adjust_net

PATCH_SIZE = 4
"""Of transformers, whose own patches are for images of 224 pixels."""

# fmt: off
TORCHVISION = (
    "resnet18", "resnet50", "resnet101", "resnext50_32x4d", "densenet121", "vgg11", "vgg11_bn",
    "vgg16_bn", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s",
    "convnext_tiny", "regnet_x_400mf", "regnet_y_400mf", "shufflenet_v2_x1_0", "mnasnet1_0",
    "googlenet", "swin_t", "alexnet",
    "resnet34", "resnet152", "wide_resnet50_2", "densenet169", "vgg13", "vgg13_bn", "vgg16",
    "vgg19", "vgg19_bn", "mobilenet_v3_small", "efficientnet_b1", "efficientnet_b2",
    "efficientnet_b3", "convnext_small", "regnet_x_800mf", "regnet_x_1_6gf", "regnet_y_800mf",
    "regnet_y_1_6gf", "shufflenet_v2_x0_5", "shufflenet_v2_x1_5", "mnasnet0_5", "mnasnet0_75",
    "mnasnet1_3", "inception_v3", "squeezenet1_0", "squeezenet1_1", "swin_s", "swin_v2_t",
    "swin_v2_s", "vit_b_16",
)
"""torchvision's classifiers of up to about 150 million parameters; the first 20 have one or two of
each family. MaxViT cannot be built for 32 x 32 images: its windows are larger than its maps."""

TIMM: dict[str, tuple[str, ...]] = {
    "": (
        "resnet10t", "seresnet18", "skresnet18", "res2net50_14w_8s", "resnest14d", "cspresnet50",
        "dla46_c", "dpn48b", "hrnet_w18_small", "ese_vovnet19b_dw", "repvgg_a0", "rexnet_100",
        "ghostnet_050", "lcnet_050", "fbnetc_100", "mixnet_s", "mobilenetv4_conv_small",
        "starnet_s1", "regnetz_005", "edgenext_xx_small", "efficientvit_b0", "fastvit_t8",
        "convnextv2_atto", "inception_next_atto", "poolformer_s12", "pvt_v2_b0", "eca_nfnet_l0",
        "mobilevit_xxs",
    ),
    "img_size": (
        "efficientformerv2_s0", "visformer_tiny", "levit_128s", "mixer_s32_224", "gmlp_ti16_224",
        "coatnet_nano_rw_224", "xcit_nano_12_p16_224",
    ),
    "img_size patch_size": (
        "vit_tiny_patch16_224", "cait_xxs24_224", "pit_ti_224", "coat_lite_tiny", "convit_tiny",
    ),
}
# fmt: on
"""The smallest model of each of 40 families of timm, by the arguments that fit it to images."""


@cache
def zoo_names() -> tuple[str, ...]:
    """Names of the networks: torchvision's, then timm's (``timm/NAME``) where it is installed."""
    has_timm = find_spec("timm") is not None
    timm = tuple(f"timm/{name}" for names in TIMM.values() for name in names)
    return TORCHVISION + (timm if has_timm else ())


def build_zoo_net(name: str, num_classes: int = 10) -> nn.Module:
    """A network of the zoo as its library initialises it, fitted to 32 x 32 images.

    By :func:`adjust_net`; torchvision's transformer by patches of 4 pixels, and timm's by the
    arguments of their own before.

    Raises:
        ValueError: an unknown name.
    """
    if name not in zoo_names():
        raise ValueError(f"unknown network {name!r} of the zoo; there are {', '.join(zoo_names())}")
    if name.startswith("timm/"):
        return _timm_net(name.removeprefix("timm/"), num_classes)
    from torchvision import models

    if name == "vit_b_16":
        return adjust_net(
            models.VisionTransformer(
                SMALL_SIZE, PATCH_SIZE, 12, 12, 768, 3072, num_classes=num_classes
            )
        )
    # These two warn that their default is going to change.
    options: Any = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return adjust_net(models.get_model(name, num_classes=num_classes, **options))


def _timm_net(name: str, num_classes: int) -> nn.Module:
    import timm

    sizes = {"img_size": SMALL_SIZE, "patch_size": PATCH_SIZE}
    fitting = next(fitting for fitting, names in TIMM.items() if name in names).split()
    arguments: Any = {argument: sizes[argument] for argument in fitting}
    model: nn.Module = timm.create_model(name, num_classes=num_classes, **arguments)
    with warnings.catch_warnings():
        # Some keep their strides: their tables of positions are made for the maps these give.
        warnings.filterwarnings("ignore", "the strides of")
        return adjust_net(model)
