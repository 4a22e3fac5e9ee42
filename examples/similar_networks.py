"""Which architectures a GHN sees as alike, without training: similar_networks.png."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import torchvision
from matplotlib import pyplot as plt

import ghn_fast
from ghn_fast.embedding import principal_components

NAMES = ("resnet18", "resnet34", "vgg11", "vgg13_bn", "squeezenet1_1", "mobilenet_v3_small")
NAMES += ("mobilenet_v2", "mnasnet0_5", "shufflenet_v2_x0_5", "densenet121", "regnet_y_400mf")

models = {name: getattr(torchvision.models, name)(num_classes=10) for name in NAMES}
places = principal_components(ghn_fast.embed(models.values()))

figure, axis = plt.subplots(figsize=(7, 5))
axis.scatter(*places.T)
for name, place in zip(NAMES, places.tolist(), strict=True):
    axis.annotate(name, place, fontsize=8)
axis.set(title="embeddings of architectures", xlabel="first direction", ylabel="second direction")
figure.savefig("similar_networks.png", dpi=120)

(_, itself), (name, alike), *_ = ghn_fast.similar(models["resnet18"], models)
print(f"most alike to resnet18 ({itself:.2f}): {name} ({alike:.2f})")
