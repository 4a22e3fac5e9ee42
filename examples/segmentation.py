"""FCN on a predicted backbone: python segmentation.py [a folder with images/ and masks/]

torchvision's head of arXiv 1411.4038 on a predicted ResNet-18, trained by SGD. Without the folder a
few made pictures in its layout are read: that it runs is all that their figure says.
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
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.segmentation import FCN
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resize

import ghn_fast
from ghn_fast.data import normalise

UNLABELLED = 255


class Scenes(Dataset):
    """images/NAME.png or .jpg, and masks/NAME.png whose pixels are classes, or 255 for none."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self.masks = sorted(folder.glob("masks/*.png"))
        self.pictures = [next(folder.glob(f"images/{mask.stem}.*")) for mask in self.masks]
        self.size = list(size)
        if not self.masks:
            raise FileNotFoundError(f"{folder} has no masks/*.png")

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A normalised picture (3, H, W) and its classes (H, W)."""
        picture = pil_to_tensor(Image.open(self.pictures[index]).convert("RGB"))
        mask = pil_to_tensor(Image.open(self.masks[index]))
        picture = resize(picture, self.size, antialias=True)
        mask = resize(mask, self.size, InterpolationMode.NEAREST)
        return normalise(picture[None])[0], mask[0].long()


def make_pictures(folder: Path) -> Path:
    """Rectangles whose colour is their class."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index, (picture, mask) in enumerate(rectangles(20)):
        picture.save(folder / "images" / f"made{index:02}.png")
        mask.save(folder / "masks" / f"made{index:02}.png")
    return folder


def predicted_model(pictures: Tensor, classes: int) -> FCN:
    """Its backbone, up to a stride of 16, predicted, with batch statistics of some pictures."""
    classifier = ghn_fast.predict(torchvision.models.resnet18(num_classes=10))
    backbone = create_feature_extractor(classifier, {"layer3": "out"})
    ghn_fast.calibrate_(backbone, pictures)
    return FCN(backbone, FCNHead(256, classes))


def train_epoch(model: FCN, batches: DataLoader, optimizer: torch.optim.SGD) -> float:
    """The mean loss. Batch norm of the backbone keeps its statistics, as batches are small."""
    model.train().backbone.eval()
    losses = []
    for pictures, classes in batches:
        if torch.rand(()) < 0.5:
            pictures, classes = pictures.flip(-1), classes.flip(-1)
        logits = model(pictures)["out"]
        loss = nn.functional.cross_entropy(logits, classes, ignore_index=UNLABELLED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def mean_overlap(model: FCN, test: Dataset, classes: int) -> float:
    """Intersection over union in %, the mean of the classes that there are."""
    model.eval()
    table = torch.zeros(classes, classes, dtype=torch.long)
    for picture, wanted in test:
        found = model(picture[None])["out"][0].argmax(0)
        known = wanted != UNLABELLED
        pairs = classes * wanted[known] + found[known]
        table += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    both, either = table.diag(), table.sum(0) + table.sum(1) - table.diag()
    return 100 * float((both[either > 0] / either[either > 0]).mean())


def main(folder: Path, epochs: int, tested: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    data = Scenes(folder, size)
    masks = torch.stack([classes for _, classes in data])
    classes = 1 + int(masks[masks != UNLABELLED].max())
    order = torch.randperm(len(data)).tolist()
    train, test = Subset(data, order[:-tested]), Subset(data, order[-tested:])
    batches = DataLoader(train, batch_size=4, shuffle=True, drop_last=True)
    model = predicted_model(torch.stack([picture for picture, _ in train][:16]), classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    print(f"before training: mean overlap {mean_overlap(model, test, classes):.1f} %")
    for epoch in range(epochs):
        print(f"epoch {epoch + 1}: loss {train_epoch(model, batches, optimizer):.3f}")
    overlap = mean_overlap(model, test, classes)
    print(f"mean overlap {overlap:.1f} % of {classes} classes, {len(test)} pictures")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), epochs=20, tested=50, size=(224, 224))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(make_pictures(Path(made)), epochs=4, tested=4, size=(96, 128))
