"""All parameters of a ResNet-50 in one forward pass, and what became of each."""

from __future__ import annotations

import time

import torchvision

import ghn_fast

model = ghn_fast.adjust_net(torchvision.models.resnet50(num_classes=10))
model, report = ghn_fast.predict(model, return_report=True)
print(report)

# The same architecture again: its graph is known.
graph = ghn_fast.from_pretrained().graph_of(model)
start = time.perf_counter()
ghn_fast.predict(model, graph=graph)
print(f"{report.num_predicted:,} parameters in {1e3 * (time.perf_counter() - start):.0f} ms")
