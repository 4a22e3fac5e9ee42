"""Peak memory of predicting a model, beside the model's own.

Each model is measured in a process of its own: the highest resident memory while predicting, less
what is resident once the model is there, as a share of the model's parameters and buffers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from torchvision import models
import ghn_fast
from ghn_fast.ghn import ghn2

def memory(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))

ghn = ghn2(num_classes=1000, max_shape=(64, 64, 16, 16)).eval()
# What the first prediction of any model loads and allocates is not the model's.
ghn_fast.predict(models.resnet18().eval(), ghn)
with torch.device("meta"):
    model = models.get_model(sys.argv[1])
model = model.to_empty(device="cpu").eval()
with torch.no_grad():
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.zero_()
size = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
_, report = ghn_fast.predict(model, ghn, return_report=True)
extra, left = memory("VmHWM") - before, list(report.unpredicted)
print(json.dumps({"size": size, "extra": extra, "left": left}))
"""


@pytest.mark.parametrize("name", ["resnet50", "vit_l_16"])
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def bench_memory(benchmark: Any, name: str) -> None:
    benchmark.group = "peak memory of predicting, beyond the model's own"
    command = [sys.executable, "-P", "-c", PROGRAM, name]
    result = {}

    def measure() -> None:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result.update(json.loads(done.stdout))

    benchmark.pedantic(measure, rounds=1, iterations=1)
    assert set(result["left"]) <= {"class_token"}  # which no GHN decodes
    benchmark.extra_info.update(
        model_mb=round(result["size"] / 1e6),
        extra_mb=round(result["extra"] / 1e6, 1),
        percent=round(100 * result["extra"] / result["size"], 1),
        limit="15 % of ViT-L/16",
    )
