"""Faster R-CNN on a predicted backbone: python detection.py [the folder PennFudanPed]

Trained as in arXiv 2110.13100, section 5: 50 pictures to test with, batches of 2, 10 epochs of
SGD with a rate of 0.005 that is divided by 10 every 3. Without the folder a few made pictures in
its layout are read, for four epochs: that it runs is all that their figure says.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from pictures import rectangles
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, box_iou, masks_to_boxes
from torchvision.transforms.functional import pil_to_tensor

import ghn_fast

ANCHORS = AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),))
POOLING = MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2)


class Pedestrians(Dataset):
    """PNGImages/NAME.png, and PedMasks/NAME_mask.png whose pixels number the people."""

    def __init__(self, folder: Path) -> None:
        self.pictures = sorted(folder.glob("PNGImages/*.png"))
        self.masks = [folder / "PedMasks" / f"{path.stem}_mask.png" for path in self.pictures]
        if not self.pictures:
            raise FileNotFoundError(f"{folder} has no PNGImages/*.png")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A picture (3, H, W) from 0 to 1, and boxes (n, 4)."""
        picture = pil_to_tensor(Image.open(self.pictures[index]).convert("RGB")) / 255
        mask = pil_to_tensor(Image.open(self.masks[index]))
        people = mask.unique()[1:]  # 0 is the background
        return picture, masks_to_boxes(mask == people[:, None, None])


def make_pictures(folder: Path) -> Path:
    """Rectangles for people."""
    for name in ("PNGImages", "PedMasks"):
        (folder / name).mkdir()
    for index, (picture, mask) in enumerate(rectangles(20)):
        picture.save(folder / "PNGImages" / f"Made{index}.png")
        mask.save(folder / "PedMasks" / f"Made{index}_mask.png")
    return folder


def predicted_detector(pictures: list[Tensor], size: int) -> FasterRCNN:
    """Its backbone predicted, with batch statistics of some pictures."""
    classifier = ghn_fast.predict(torchvision.models.resnet18(num_classes=10))
    backbone = nn.Sequential(*list(classifier.children())[:-2])
    backbone.out_channels = classifier.fc.in_features
    detector = FasterRCNN(
        backbone,
        num_classes=2,
        min_size=size,
        rpn_anchor_generator=ANCHORS,
        box_roi_pool=POOLING,
    )
    ghn_fast.calibrate_(backbone, [detector.transform(pictures)[0].tensors])
    return detector


def train_epoch(detector: FasterRCNN, batches: DataLoader, optimizer: torch.optim.SGD) -> float:
    """The mean loss. Batch norm keeps its statistics, as batches are of two pictures."""
    detector.train().backbone.eval()
    losses = []
    for pictures, boxes in batches:
        found = mirrored(pictures, boxes)
        targets = [{"boxes": b, "labels": torch.ones(len(b)).long()} for _, b in found]
        loss = sum(detector([picture for picture, _ in found], targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def mirrored(pictures: list[Tensor], boxes: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Half of them, as chance has it."""
    found = []
    for picture, own in zip(pictures, boxes, strict=True):
        if torch.rand(()) < 0.5:
            left, top, right, bottom = own.unbind(dim=1)
            width = picture.shape[-1]
            own = torch.stack([width - right, top, width - left, bottom], dim=1)
            picture = picture.flip(-1)
        found.append((picture, own))
    return found


@torch.no_grad()
def average_precision(detector: FasterRCNN, test: Dataset, overlap: float = 0.5) -> float:
    """Area in % under the curve of precision over recall, of boxes that overlap a person's."""
    detector.eval()
    hits, people = [], 0
    for picture, boxes in test:
        people += len(boxes)
        found = detector([picture])[0]
        ious = box_iou(found["boxes"], boxes)
        for score, row in zip(found["scores"], ious, strict=True):  # the surest first
            best = int(row.argmax())
            hits.append((float(score), float(row[best]) >= overlap))
            if hits[-1][1]:
                ious[:, best] = 0  # a person is found once
    right = torch.tensor([hit for _, hit in sorted(hits, key=lambda h: -h[0])]).double()
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    highest = precision.flip(0).cummax(0).values.flip(0) if len(right) else precision
    return 100 * float((highest * right).sum()) / people


def pairs(items: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    pictures, boxes = zip(*items, strict=True)
    return list(pictures), list(boxes)


def main(folder: Path, epochs: int, tested: int, size: int) -> None:
    torch.manual_seed(0)
    data = Pedestrians(folder)
    order = torch.randperm(len(data)).tolist()
    train, test = Subset(data, order[:-tested]), Subset(data, order[-tested:])
    batches = DataLoader(train, batch_size=2, shuffle=True, collate_fn=pairs)
    detector = predicted_detector([train[i][0] for i in range(min(8, len(train)))], size)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3)
    for epoch in range(epochs):
        loss = train_epoch(detector, batches, optimizer)
        schedule.step()
        print(f"epoch {epoch + 1}: loss {loss:.3f}")
    print(f"average precision {average_precision(detector, test):.1f} % of {len(test)} pictures")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), epochs=10, tested=50, size=800)
    else:
        with tempfile.TemporaryDirectory() as made:
            main(make_pictures(Path(made)), epochs=4, tested=4, size=96)
