"""Does what a predicted network says still depend on what it is shown?

    python bench/spread.py --ghn ghn2-cifar10 --data DIR

For 20 transformers and ConvNeXts of the zoo: the spread over images of the features that the
classification layer reads, relative to their size (0: all images alike, 1: nothing in common), as
the library initialises the network and as the GHN predicts it, and the second over the first. A GHN
does no harm where that is not far below 1.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import ghn_fast
from ghn_fast.data import load_images
from ghn_fast.evaluation import use_batch_statistics
from ghn_fast.nets.zoo import build_zoo_net

NETWORKS = (
    *("convnext_tiny", "convnext_small", "swin_t", "swin_s", "swin_v2_t", "vit_b_16"),
    *("timm/convnextv2_atto", "timm/inception_next_atto", "timm/edgenext_xx_small"),
    *("timm/efficientformerv2_s0", "timm/visformer_tiny", "timm/levit_128s"),
    *("timm/coatnet_nano_rw_224", "timm/xcit_nano_12_p16_224", "timm/vit_tiny_patch16_224"),
    *("timm/cait_xxs24_224", "timm/pit_ti_224", "timm/coat_lite_tiny", "timm/convit_tiny"),
    "timm/pvt_v2_b0",
)


@torch.no_grad()
def spread(model: nn.Module, images: Tensor) -> float:
    """Of the features before the last linear layer, over (N, 3, H, W) images."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(images)
    hook.remove()
    features = seen[-1].flatten(1).double()
    deviation = (features - features.mean(dim=0)).square().mean().sqrt()
    return float(deviation / features.square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ghn", default="ghn2-cifar10")
    parser.add_argument("--data", default=None, help="test images; CIFAR-10 in the usual places")
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    images = load_images(options.data, "test").batch(torch.arange(options.images))
    within = 0
    for name in NETWORKS:
        torch.manual_seed(0)
        model = use_batch_statistics(build_zoo_net(name)).eval()
        before = spread(model, images)
        ghn_fast.predict(model, ghn=options.ghn)
        after = spread(model, images)
        within += 3 * after >= before
        print(f"{name:28} {before:.4f} {after:.4f} {after / before:.3f}", flush=True)
    print(f"{within} of {len(NETWORKS)} keep a third of their spread or more")


if __name__ == "__main__":
    main()
