"""A classifier of new pictures without a step of gradient descent, beside a random network's.

Handwritten digits are far from the photographs that the GHN has seen, and random layers do as well
or better there; of signs `ghn-fast fit` says the opposite. That is why it compares both.
"""

from __future__ import annotations

import torch
import torchvision
from pictures import accuracy, digits

import ghn_fast

fit, held_out = digits()


def classifier(predicted: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    model = ghn_fast.adjust_net(torchvision.models.resnet18(num_classes=10))
    if predicted:
        ghn_fast.predict(model)
    ghn_fast.calibrate_(model, fit)  # statistics for batch norm
    print(ghn_fast.fit_head_(model, fit))  # the output layer, in closed form
    return model.eval()


for predicted in (True, False):
    name = "predicted" if predicted else "random"
    print(f"{name} layers: {accuracy(classifier(predicted), held_out):.1f} % of new digits")
