"""Products of two layers in place of a perceptron's hidden values: StarNet (arXiv 2403.19967)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ghn_fast.nets.families.draw import Draw, batch_norm
from ghn_fast.nets.families.parts import pooled_head


def star(draw: Draw, num_classes: int) -> nn.Module:
    """A stem and two to four stages that halve the map."""
    activation = draw.pick((nn.ReLU6, nn.ReLU6, nn.ReLU, nn.GELU))
    kernel, ratio = draw.pick((3, 5, 7, 7)), draw.pick((2, 3, 4, 4))
    stem, channels = draw.between(16, 32, 8), draw.between(16, 48, 8)
    layers: list[nn.Module] = [normed(3, stem, 3, draw.pick((1, 2, 2))), activation()]
    for stage in range(draw.between(2, 4)):
        outputs = channels * 2**stage
        layers.append(normed(stem, outputs, 3, 2))
        layers += [Star(outputs, kernel, ratio, activation) for _ in range(draw.between(1, 5))]
        stem = outputs
    return nn.Sequential(*layers, batch_norm(stem), *pooled_head(stem, num_classes))


def normed(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution that has a bias all the same."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
    return nn.Sequential(layer, batch_norm(outputs))


class Star(nn.Module):
    """Two layers of the same map, multiplied, between depthwise ones."""

    def __init__(
        self, channels: int, kernel: int, ratio: int, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        hidden = channels * ratio
        self.before = normed(channels, channels, kernel, groups=channels)
        self.left, self.right = (nn.Conv2d(channels, hidden, 1) for _ in range(2))
        self.act = activation()
        self.narrow = normed(hidden, channels, 1)
        self.after = nn.Conv2d(channels, channels, kernel, 1, kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        return x + self.after(self.narrow(self.act(self.left(y)) * self.right(y)))
