"""Measures how close embedding JPEG bytes on a GPU comes to the model's own speed. Needs torch, torchvision, open_clip.

    python bench/gpu_embed.py                              # ViT-B-32, ViT-L-14 and SigLIP-SO400M in bfloat16
    python bench/gpu_embed.py --models ViT-B-32 --decode cpu --threads 16 --compile

`forward` runs batches that are already on the device: the limit. `from jpeg` starts from bytes in memory, which are
decoded on the device (nvJPEG, through torchvision) or by threads on the CPU, resized, cropped, normalized and encoded.
The next batches are decoded while one is in the model. The last columns show the time of each step for one batch, alone
and synchronized. Weights are random, because speed does not depend on them. `--device cpu` only shows that it runs.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import open_clip
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

MODELS = ("ViT-B-32", "ViT-L-14", "ViT-SO400M-14-SigLIP")
AHEAD = 3


def draw(count: int, width: int, height: int) -> list[torch.Tensor]:
    """JPEGs of smooth noise with grain, quality 90, as uint8 tensors of their bytes."""
    generator, bodies = torch.Generator().manual_seed(3), []
    for _ in range(count):
        coarse = torch.rand(3, 12, 16, generator=generator)
        picture = functional.resize(coarse, [height, width], antialias=True)
        picture = (picture + 0.03 * torch.randn(3, height, width, generator=generator)).clamp(0, 1)
        file = io.BytesIO()
        Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=90)
        bodies.append(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))
    return bodies


class Bench:
    """One model on one device."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.dtype = torch.bfloat16
        model = open_clip.create_model(name, load_weights=False, precision="bf16", device=self.device).eval()
        self.parameters = sum(parameter.numel() for parameter in model.visual.parameters())
        self.encode: Any = model.encode_image
        if options.compile:
            self.encode = torch.compile(model.encode_image, mode="max-autotune")
        self.side = int(open_clip.get_model_preprocess_cfg(model)["size"][0])
        self.on_device = options.decode == "gpu" and self.device.type == "cuda"
        self.pool = ThreadPoolExecutor(1 if self.on_device else options.threads)
        self.batch_size = options.batch_size

    def decoded(self, bodies: list[torch.Tensor]) -> Any:
        """Start decoding. Returns what `ready` takes: a future for all pictures, or one per picture on the CPU."""
        if self.on_device:
            return self.pool.submit(decode_jpeg, bodies, ImageReadMode.RGB, self.device)
        return [self.pool.submit(self._on_cpu, body) for body in bodies]

    def _on_cpu(self, body: torch.Tensor) -> torch.Tensor:
        picture = functional.resize(decode_jpeg(body, ImageReadMode.RGB), [self.side], antialias=True)
        return functional.center_crop(picture, [self.side])  # type: ignore[no-any-return]

    def ready(self, decoded: Any) -> torch.Tensor:
        """uint8 [b, 3, side, side] on the device."""
        if isinstance(decoded, Future):
            pictures = [
                functional.center_crop(functional.resize(each.float(), [self.side], antialias=True), [self.side])
                for each in decoded.result()
            ]
            return torch.stack(pictures)
        batch = torch.stack([future.result() for future in decoded])
        return (batch.pin_memory() if self.device.type == "cuda" else batch).to(self.device, non_blocking=True)

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """[b, dim], L2-normalized."""
        found = self.encode((pictures.float() / 127.5 - 1).to(self.dtype))
        return torch.nn.functional.normalize(found.float(), dim=-1)

    def stream(self, bodies: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Embeddings of all bodies. Batches are decoded ahead."""
        batches = [bodies[start : start + self.batch_size] for start in range(0, len(bodies), self.batch_size)]
        pending = [self.decoded(batch) for batch in batches[:AHEAD]]
        for following in [*batches[AHEAD:], *[None] * AHEAD]:
            if not pending:
                return
            pictures = self.ready(pending.pop(0))
            if following is not None:
                pending.append(self.decoded(following))
            yield self.embed(pictures)


def seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Wall seconds of the work, with the device synchronized before and after."""
    synchronize: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def measure(name: str, bodies: list[torch.Tensor], options: argparse.Namespace) -> None:
    """Measure one model and print its line of the table."""
    bench = Bench(name, options)
    first, count = bodies[: bench.batch_size], len(bodies)
    pictures = torch.randint(0, 256, (len(first), 3, bench.side, bench.side), dtype=torch.uint8, device=bench.device)
    ready = (pictures.float() / 127.5 - 1).to(bench.dtype)
    for _ in range(3):  # autotuning, lazy loading
        bench.encode(ready)
        list(bench.stream(first))
    repeats = max(1, count // len(first))
    rounds = []
    for _ in range(options.rounds):
        forward = seconds(bench.device, lambda: [bench.encode(ready) for _ in range(repeats)])
        jpeg = seconds(bench.device, lambda: list(bench.stream(bodies)))
        rounds.append((repeats * len(first) / forward, count / jpeg))
    rounds.sort(key=lambda each: each[1] / each[0])
    forward_rate, jpeg_rate = rounds[len(rounds) // 2]
    decode_s = seconds(bench.device, lambda: bench.ready(bench.decoded(first)))
    embed_s = seconds(bench.device, lambda: bench.embed(pictures))
    print(
        f"{name:<24}{bench.parameters / 1e6:>7.0f} M{forward_rate:>12.0f}{jpeg_rate:>12.0f}"
        f"{jpeg_rate / forward_rate:>8.2f}{1000 * decode_s:>12.1f}{1000 * embed_s:>10.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--decode", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--pictures", type=int, default=8_192)
    parser.add_argument("--distinct", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --device cpu only shows that the script runs")
    drawn = draw(min(options.distinct, options.pictures), 512, 384)
    bodies = [drawn[n % len(drawn)] for n in range(options.pictures)]
    kilobytes = sum(map(len, drawn)) / len(drawn) / 1000
    print(f"{len(drawn)} JPEGs of 512 x 384, {kilobytes:.0f} kB; batches of {options.batch_size}")
    headings = f"{'forward/s':>12}{'from jpeg/s':>12}{'ratio':>8}{'decode ms':>12}{'embed ms':>10}"
    print(f"{'model':<24}{'visual':>9}{headings}")
    with torch.inference_mode():
        for name in options.models:
            measure(name, bodies, options)


if __name__ == "__main__":
    main()
