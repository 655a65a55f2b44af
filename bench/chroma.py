"""Measures what 4:2:0 chroma subsampling saves in stored JPEGs, and what it costs a model.

    python -m bench.chroma ../shared/data/pairs/coco

Resizes the pictures of a folder that are larger than 512 px, and stores them at quality 95 without and with
subsampling. Prints bytes, CPU time, PSNR after the model's own resizing, and the distance of the embeddings from those
of the pixels before storing, as 1 - cosine. The model is a ViT-B-32 with random weights, so this shows how much of the
change reaches the embeddings, not how much it affects a trained model.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import simplejpeg
import torch
from PIL import Image

from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.image.resize import Pixels, plan_resize, resize
from pairmill.schemas.job.images import ImagesConfig

QUALITY, SIDES = 95, (224, 336)


def resized(folder: Path) -> Iterator[Pixels]:
    config = ImagesConfig()
    processor = ImageProcessor(config)
    for path in sorted(folder.rglob("*.jpg")):
        pixels = processor.pixels(path.read_bytes())
        if target := plan_resize(pixels.shape[1], pixels.shape[0], config):
            yield np.ascontiguousarray(resize(pixels, target, config))


def psnr(one: Pixels, other: Pixels) -> float:
    error = float(np.mean((one.astype(float) - other.astype(float)) ** 2))
    return 10 * float(np.log10(255**2 / max(error, 1e-9)))


def shorter_side(pixels: Pixels, side: int) -> Pixels:
    image = Image.fromarray(pixels)
    scale = side / min(image.size)
    return np.asarray(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    pictures = list(resized(parser.parse_args().folder))
    torch.manual_seed(0)
    model, _, prepare = open_clip.create_model_and_transforms("ViT-B-32", load_weights=False)
    model.eval()

    @torch.no_grad()
    def embedding(pixels: Pixels) -> torch.Tensor:
        return torch.nn.functional.normalize(
            model.encode_image(prepare(Image.fromarray(pixels))[None]).double(), dim=-1
        )[0]

    before = [embedding(pixels) for pixels in pictures]
    for chroma in ("444", "420"):
        sizes, seconds, drift = [], [], []
        ratios: dict[int, list[float]] = {side: [] for side in SIDES}
        for pixels, reference in zip(pictures, before, strict=True):
            started = time.thread_time()
            jpeg = simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", chroma)
            seconds.append(time.thread_time() - started)
            sizes.append(len(jpeg))
            stored = simplejpeg.decode_jpeg(jpeg)
            drift.append(1 - float(embedding(stored) @ reference))
            for side in SIDES:
                ratios[side].append(psnr(shorter_side(pixels, side), shorter_side(stored, side)))
        print(f"{chroma}: {statistics.mean(sizes):,.0f} bytes, {statistics.median(seconds) * 1e3:.2f} ms")
        for side, values in ratios.items():
            print(
                f"     at {side} px: {statistics.median(values):.1f} dB, 5th percentile {np.percentile(values, 5):.1f}"
            )
        print(f"     1 - cosine: median {statistics.median(drift):.1e}, 95th percentile {np.percentile(drift, 95):.1e}")


if __name__ == "__main__":
    main()
