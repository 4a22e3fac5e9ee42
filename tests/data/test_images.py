from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ghn_fast.data import DataError, Images, ImageStream, augment, normalise


def numbered_images(count: int, size: int = 32) -> Images:
    """Images whose pixels all hold their own number, with it as the label."""
    numbers = torch.arange(count)
    pixels = numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(count, 3, size, size)
    return Images(pixels.contiguous(), numbers)


def random_pixels(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def test_images_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, 3, H, W\), not torch.float32"):
        Images(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"2 images need labels of shape \(2,\)"):
        Images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


def test_normalise_gives_the_published_statistics() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).repeat(1, 3, 1, 1)
    values = normalise(images).flatten(1)
    mean = torch.tensor([0.49139968, 0.48215827, 0.44653124])
    std = torch.tensor([0.24703233, 0.24348505, 0.26158768])
    torch.testing.assert_close(values, torch.stack([-mean / std, (1 - mean) / std]))


def test_normalised_images_are_channels_last(generator: torch.Generator) -> None:
    images = normalise(random_pixels(2, generator))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_every_bit_of_a_seed_counts() -> None:
    """PyTorch's generator drops all but the lowest 32."""
    batches = [ImageStream(numbered_images(64), 8, seed).batch(0) for seed in (0, 2**32, 2**40)]
    for (images, labels), (others, other_labels) in itertools.combinations(batches, 2):
        assert not torch.equal(labels, other_labels)
        assert not torch.equal(images, others)


@pytest.mark.parametrize(("repeats_edges", "mode"), [(False, "constant"), (True, "replicate")])
def test_augment_gives_crops_of_the_padded_image(
    repeats_edges: bool, mode: str, generator: torch.Generator
) -> None:
    images = random_pixels(64, generator)
    padded = torch.nn.functional.pad(images.float(), (4,) * 4, mode).to(torch.uint8)
    seen = set()
    crops = augment(images, generator, repeats_edges=repeats_edges)
    for original, crop in zip(padded, crops, strict=True):
        seen.add(locate(original, crop))
    assert {mirrored for _, _, mirrored in seen} == {False, True}
    assert {0, 8} <= {top for top, _, _ in seen}
    assert {0, 8} <= {left for _, left, _ in seen}


def locate(padded: Tensor, crop: Tensor) -> tuple[int, int, bool]:
    """Where in the padded image the crop is from, and whether it is mirrored."""
    for mirrored in (False, True):
        unmirrored = crop.flip(-1) if mirrored else crop
        windows = padded.unfold(1, 32, 1).unfold(2, 32, 1)
        equal = (windows == unmirrored[:, None, None]).all(dim=(0, 3, 4)).nonzero()
        if len(equal):
            top, left = equal[0].tolist()
            return top, left, mirrored
    raise AssertionError("the crop is no part of the image")


def test_without_crops_images_are_only_mirrored(generator: torch.Generator) -> None:
    data = Images(random_pixels(64, generator), torch.arange(64) % 10)
    images, labels = ImageStream(data, 64, seed=0).batch(0, crop=False)
    wanted = data.batch(torch.arange(64))
    mirrored = 0
    for image, label in zip(images, labels, strict=True):
        same = [torch.equal(image, other) for other in wanted]
        flipped = [torch.equal(image.flip(-1), other) for other in wanted]
        assert data.labels[(same if any(same) else flipped).index(True)] == label
        mirrored += any(flipped)
    assert 0 < mirrored < 64


def test_an_epoch_takes_every_image_once() -> None:
    stream = ImageStream(numbered_images(20), batch_size=5, seed=3)
    assert torch.equal(stream.batch(1, count=3)[1], stream[1][1][:3])
    epochs = [[stream[4 * epoch + batch][1] for batch in range(4)] for epoch in range(2)]
    orders = [torch.cat(epoch).tolist() for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
    assert orders[0] != orders[1]


def test_a_batch_depends_on_seed_and_position_alone() -> None:
    data = numbered_images(20)
    one, other = ImageStream(data, 5, seed=1), ImageStream(data, 5, seed=1)
    for position in range(6):
        one[position]
    for drawn, wanted in zip(other[5], one[5], strict=True):
        assert torch.equal(drawn, wanted)
    assert not torch.equal(ImageStream(data, 5, seed=2)[5][1], one[5][1])


def test_labels_stay_with_their_images() -> None:
    images, labels = ImageStream(numbered_images(50), 10, seed=0).batch(2, crop=False)
    wanted = normalise(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32))
    torch.testing.assert_close(images, wanted)


def test_impossible_batch_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be from 1 to 20, not 21"):
        ImageStream(numbered_images(20), 21, seed=0)


def test_images_that_would_come_out_black_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be uint8 from 0 to 255, not torch\.float32"):
        normalise(torch.rand(2, 3, 4, 4))


def test_no_images_are_named() -> None:
    with pytest.raises(DataError, match="no images to draw batches from"):
        ImageStream(numbered_images(0), 5, seed=0)
