"""Tests that transforms on tensors give nearly the same pixel values as torchvision does for PIL images."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision import transforms

from pairmill.pipeline.feed.transforms import on_tensors
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.images import ImagesConfig

PHOTOS = Path(__file__).parents[4] / "shared/data/pairs"

NORMALIZE = transforms.Normalize((0.5, 0.4, 0.3), (0.25, 0.5, 0.2))
OF_OPEN_CLIP = {
    "evaluation": open_clip.image_transform(224, is_train=False),
    "training": open_clip.image_transform(224, is_train=True),
    "augmented": open_clip.image_transform(64, is_train=True, aug_cfg={"scale": (0.3, 1.0)}),
}
OWN = {
    "both sides": transforms.Compose([transforms.Resize((50, 80)), transforms.ToTensor()]),
    "longest side": transforms.Compose([transforms.Resize(90, max_size=100), transforms.ToTensor(), NORMALIZE]),
    "flipped": transforms.Compose(
        [
            transforms.Resize(64, transforms.InterpolationMode.BICUBIC),
            transforms.RandomCrop(60),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.ToTensor(),
            transforms.RandomErasing(),
        ]
    ),
}


def levels(values: torch.Tensor, transform: transforms.Compose) -> torch.Tensor:
    """The values on the scale from 0 to 255."""
    scales = [torch.tensor(step.std) for step in transform.transforms if isinstance(step, transforms.Normalize)]
    return values * 255 * (scales[0].view(3, 1, 1) if scales else 1)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"the photographs are not at {PHOTOS}")
@pytest.mark.parametrize("transform", [*OF_OPEN_CLIP.values(), *OWN.values()], ids=[*OF_OPEN_CLIP, *OWN])
def test_photographs_get_nearly_the_same_values_and_the_same_random_numbers(
    transform: transforms.Compose,
) -> None:
    fast = on_tensors(transform)
    assert fast is not None
    processor, off_by = ImageProcessor(ImagesConfig()), []
    for seed, path in enumerate(sorted(PHOTOS.rglob("*.jpg"))[::60]):
        pixels = processor.pixels(path.read_bytes())
        torch.manual_seed(seed)
        expected, drawn = transform(Image.fromarray(pixels)), torch.rand(1)
        torch.manual_seed(seed)
        found = fast(pixels)
        assert torch.equal(torch.rand(1), drawn)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        off_by.append(levels(found - expected, transform).abs().ravel())
    all_off_by = torch.cat(off_by)
    assert (all_off_by > 0.01).float().mean() < 0.03
    assert (all_off_by > 1.01).float().mean() < 0.000_2
    assert all_off_by.max() < 12


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5), (224, 224), (225, 223)])
def test_odd_sizes_get_nearly_the_same_values_too(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*shape, 3), np.uint8)
    for transform in OF_OPEN_CLIP.values():
        fast = on_tensors(transform)
        assert fast is not None
        torch.manual_seed(1)
        expected = transform(Image.fromarray(pixels))
        torch.manual_seed(1)
        assert levels(fast(pixels) - expected, transform).abs().max() < 3


def test_read_only_pixels_are_not_modified() -> None:
    pixels = np.asarray(Image.new("RGB", (300, 200), (10, 20, 30)))
    fast = on_tensors(OF_OPEN_CLIP["evaluation"])
    assert fast is not None
    assert fast(pixels).shape == (3, 224, 224)


@pytest.mark.parametrize("transform", [*OF_OPEN_CLIP.values(), *OWN.values()], ids=[*OF_OPEN_CLIP, *OWN])
def test_a_transform_can_be_sent_to_loader_workers(transform: transforms.Compose) -> None:
    pixels = np.zeros((80, 90, 3), np.uint8)
    fast = on_tensors(transform)
    assert fast is not None
    torch.manual_seed(1)
    expected = fast(pixels)
    torch.manual_seed(1)
    assert torch.equal(pickle.loads(pickle.dumps(fast))(pixels), expected)  # noqa: S301


class _OwnToTensor(transforms.ToTensor):
    def __call__(self, pic: Any) -> Any:
        return super().__call__(pic) * 2 - 1


class _OwnCompose(transforms.Compose):
    def __call__(self, img: Any) -> Any:
        return super().__call__(img.rotate(90))


@pytest.mark.parametrize(
    "transform",
    [
        lambda image: image.size,
        _OwnCompose([transforms.Resize(64), transforms.ToTensor()]),
        transforms.Compose([transforms.Resize(64)]),
        transforms.Compose([transforms.RandomCrop(64, padding=4, fill=(1, 2, 3)), transforms.ToTensor()]),
        transforms.Compose([transforms.RandomCrop(64, pad_if_needed=True), transforms.ToTensor()]),
        transforms.Compose([transforms.Resize(64), _OwnToTensor()]),
        transforms.Compose([transforms.ColorJitter(0.5), transforms.ToTensor()]),
        transforms.Compose([transforms.Resize(64, transforms.InterpolationMode.LANCZOS), transforms.ToTensor()]),
        transforms.Compose([transforms.Resize(64, transforms.InterpolationMode.NEAREST), transforms.ToTensor()]),
        transforms.Compose([transforms.PILToTensor(), transforms.Resize(64, antialias=False)]),
        transforms.Compose([lambda image: image.convert("L"), transforms.ToTensor()]),
        open_clip.image_transform(64, is_train=False, resize_mode="longest"),
    ],
)
def test_transforms_that_only_work_on_pil_images_are_left_to_pil(transform: Callable[..., Any]) -> None:
    assert on_tensors(transform) is None
