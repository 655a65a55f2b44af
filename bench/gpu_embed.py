"""Measures how close a GPU comes to the model's own speed when it embeds JPEGs. Needs torch, torchvision and open_clip.

    python -m bench.gpu_embed                              # ViT-B-32, ViT-L-14 and SigLIP-SO400M in bfloat16
    python -m bench.gpu_embed --models ViT-B-32 --decode cpu --threads 16 --compile

`forward/s` is the upper limit: the rate for batches that are already on the device. `from jpeg/s` starts from JPEG
bytes in memory. They are decoded on the device (by nvJPEG, through torchvision) or by threads on the CPU, then resized,
cropped, normalized and encoded. While one batch is in the model, the next ones are decoded. The last two columns show
how long decoding and embedding take for one batch when nothing else runs. Weights are random, because speed does not
depend on them. `--device cpu` only shows that the script runs.
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
BATCHES_AHEAD = 3


def draw(count: int, width: int, height: int) -> list[torch.Tensor]:
    """JPEG files of smooth noise with grain, at quality 90, each as a uint8 tensor [num_bytes]."""
    generator, jpegs = torch.Generator().manual_seed(3), []
    for _ in range(count):
        coarse = torch.rand(3, 12, 16, generator=generator)
        picture = functional.resize(coarse, [height, width], antialias=True)
        picture = (picture + 0.03 * torch.randn(3, height, width, generator=generator)).clamp(0, 1)
        file = io.BytesIO()
        Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=90)
        jpegs.append(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))
    return jpegs


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

    def start_decoding(self, jpegs: list[torch.Tensor]) -> Any:
        """Start decoding a batch. Returns the argument for `wait_for_batch`: one future for the whole batch if the
        device decodes, or one for each picture if the CPU does."""
        if self.on_device:
            return self.pool.submit(decode_jpeg, jpegs, ImageReadMode.RGB, self.device)
        return [self.pool.submit(self._on_cpu, jpeg_bytes) for jpeg_bytes in jpegs]

    def _on_cpu(self, jpeg_bytes: torch.Tensor) -> torch.Tensor:
        picture = functional.resize(decode_jpeg(jpeg_bytes, ImageReadMode.RGB), [self.side], antialias=True)
        return functional.center_crop(picture, [self.side])  # type: ignore[no-any-return]

    def wait_for_batch(self, pending: Any) -> torch.Tensor:
        """Wait until the pictures are decoded. Returns uint8 [b, 3, side, side] on the device."""
        if isinstance(pending, Future):
            pictures = [
                functional.center_crop(functional.resize(each.float(), [self.side], antialias=True), [self.side])
                for each in pending.result()
            ]
            return torch.stack(pictures)
        batch = torch.stack([future.result() for future in pending])
        return (batch.pin_memory() if self.device.type == "cuda" else batch).to(self.device, non_blocking=True)

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Embeddings [b, dim] of uint8 [b, 3, side, side], L2-normalized."""
        embeddings = self.encode((pictures.float() / 127.5 - 1).to(self.dtype))
        return torch.nn.functional.normalize(embeddings.float(), dim=-1)

    def stream(self, jpegs: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the embeddings of all pictures, batch by batch, while the next BATCHES_AHEAD batches are being
        decoded."""
        batches = [jpegs[start : start + self.batch_size] for start in range(0, len(jpegs), self.batch_size)]
        pending = [self.start_decoding(batch) for batch in batches[:BATCHES_AHEAD]]
        for following in [*batches[BATCHES_AHEAD:], *[None] * BATCHES_AHEAD]:
            if not pending:
                return
            pictures = self.wait_for_batch(pending.pop(0))
            if following is not None:
                pending.append(self.start_decoding(following))
            yield self.embed(pictures)


def seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Wall-clock seconds of the work, with the device synchronized before and after."""
    synchronize: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def measure(name: str, jpegs: list[torch.Tensor], options: argparse.Namespace) -> None:
    """Measure one model and print its line of the table."""
    bench = Bench(name, options)
    first, count = jpegs[: bench.batch_size], len(jpegs)
    pictures = torch.randint(0, 256, (len(first), 3, bench.side, bench.side), dtype=torch.uint8, device=bench.device)
    inputs = (pictures.float() / 127.5 - 1).to(bench.dtype)
    for _ in range(3):  # warm-up, for autotuning and lazy loading
        bench.encode(inputs)
        list(bench.stream(first))
    repeats = max(1, count // len(first))
    rounds = []
    for _ in range(options.rounds):
        forward = seconds(bench.device, lambda: [bench.encode(inputs) for _ in range(repeats)])
        from_jpeg = seconds(bench.device, lambda: list(bench.stream(jpegs)))
        rounds.append((repeats * len(first) / forward, count / from_jpeg))
    rounds.sort(key=lambda each: each[1] / each[0])
    forward_rate, jpeg_rate = rounds[len(rounds) // 2]
    decode_s = seconds(bench.device, lambda: bench.wait_for_batch(bench.start_decoding(first)))
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
        raise SystemExit("no CUDA device found; --device cpu only shows that the script runs")
    distinct = draw(min(options.distinct, options.pictures), 512, 384)
    jpegs = [distinct[n % len(distinct)] for n in range(options.pictures)]
    kilobytes = sum(map(len, distinct)) / len(distinct) / 1000
    print(f"{len(distinct)} JPEGs of 512 x 384, {kilobytes:.0f} kB; batches of {options.batch_size}")
    headings = f"{'forward/s':>12}{'from jpeg/s':>12}{'ratio':>8}{'decode ms':>12}{'embed ms':>10}"
    print(f"{'model':<24}{'visual':>9}{headings}")
    with torch.inference_mode():
        for name in options.models:
            measure(name, jpegs, options)


if __name__ == "__main__":
    main()
