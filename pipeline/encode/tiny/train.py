"""Trains and measures the built-in model `tiny`, a small open_clip CLIP model, on pictures from `draw`.

    python -m pairmill.pipeline.encode.tiny.train                    # train, write the weights, measure
    python -m pairmill.pipeline.encode.tiny.train --evaluate-only    # measure the existing weights

A batch consists of families. A family is a scene and three near misses (one wrong color, one wrong shape, swapped
order), each as a picture and as a caption, so every member is a hard negative of the other three. The loss is a sum:
CLIP's softmax loss ranks captions and learns fast; SigLIP's sigmoid loss scores each pair by itself, so that one
threshold on the cosine similarity means the same for every caption.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from pairmill.pipeline.encode.tiny.draw import (
    CONVERSE,
    Scene,
    caption,
    random_scene,
    render,
    swapped_order,
    wrong_color,
    wrong_shape,
)
from pairmill.pipeline.encode.tiny.evaluate import CALIBRATION, CALIBRATION_SEED, calibrate, measure, similarities

TINY = Path(__file__).parent
CONFIG = "open_clip_config.json"
WEIGHTS = "model.safetensors"
SIDE = 64  # side of the model's input, in pixels
MEMBERS = 4  # scenes in a family
FAMILIES = 8_000  # drawn once; every step uses some of them
BATCH = 128  # pictures, and as many captions
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
WARMUP = 50  # steps
HARD = 4.0  # weight of a pair inside a family in the sigmoid loss

TRAIN_SEED = 0


@dataclass(frozen=True)
class Pairs:
    """Captioned pictures, family after family: n = MEMBERS * families."""

    pictures: Tensor  # uint8 [n, 3, SIDE, SIDE]
    tokens: Tensor  # int64 [n, context]
    meanings: Tensor  # int64 [n]; equal if the scenes look the same
    easy_families: Tensor  # indices of families

    @property
    def families(self) -> int:
        """Number of families, each a scene and its near misses."""
        return len(self.meanings) // MEMBERS


def family(rng: Random) -> list[Scene]:
    """A scene and three near misses. A scene of one thing has no order to swap, so it gets a second wrong color."""
    scene = random_scene(rng)
    third = wrong_color if scene.second is None else swapped_order
    return [scene, wrong_color(scene, rng), wrong_shape(scene, rng), third(scene, rng)]


def draw_families(seed: str, count: int) -> tuple[list[Scene], list[str], npt.NDArray[np.uint8]]:
    """The scenes, captions and pictures, uint8 [n, SIDE, SIDE, 3], of `count` families."""
    rng = Random(seed)
    scenes = [scene for _ in range(count) for scene in family(rng)]
    captions = [caption(scene, rng) for scene in scenes]
    return scenes, captions, np.stack([np.asarray(render(scene, rng, SIDE)) for scene in scenes])


def draw_pairs(tokenize: Callable[[list[str]], Tensor], seed: int, families: int) -> Pairs:
    """All training data, drawn in two processes."""
    parts = 16
    with ProcessPoolExecutor(2) as pool:
        seeds = [f"train {seed} {part}" for part in range(parts)]
        drawn = list(pool.map(draw_families, seeds, [families // parts] * parts))
    scenes = [scene for part in drawn for scene in part[0]]
    numbers: dict[Scene, int] = {}
    meanings = [numbers.setdefault(scene.meaning, len(numbers)) for scene in scenes]
    easy = [i for i, scene in enumerate(scenes[::MEMBERS]) if scene.relation not in CONVERSE]
    return Pairs(
        pictures=torch.from_numpy(np.concatenate([part[2] for part in drawn])).permute(0, 3, 1, 2),
        tokens=tokenize([text for part in drawn for text in part[1]]),
        meanings=torch.tensor(meanings),
        easy_families=torch.tensor(easy),
    )


def batches(pairs: Pairs, steps: int, generator: torch.Generator) -> Iterable[Tensor]:
    """Row indices [BATCH] of whole families for every step.

    The first third of the steps omits "below" and "right of". The position of each thing depends on both the relation
    and the word order, which the model learns several times faster once it knows half of the relations.
    """
    for step in range(steps):
        known = pairs.easy_families if step < steps // 3 else torch.arange(pairs.families)
        chosen = known[torch.randint(len(known), (BATCH // MEMBERS, 1), generator=generator)]
        yield (chosen * MEMBERS + torch.arange(MEMBERS)).flatten()  # [BATCH / MEMBERS, MEMBERS] -> [BATCH]


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, meanings: Tensor) -> Tensor:
    """Softmax loss plus sigmoid loss of L2-normalized features [b, dim]. Scenes that look the same match each other."""
    same = (meanings[:, None] == meanings).float()  # [b, b]
    logits = scale * image @ text.T
    right = same / same.sum(1, keepdim=True)
    softmax = -(right * (logits.log_softmax(0) + logits.log_softmax(1))).sum(1).mean()
    number = torch.arange(len(same)) // MEMBERS
    weight = torch.where(number[:, None] == number, HARD, 1.0)
    sigmoid = -(weight * F.logsigmoid((2 * same - 1) * (logits + bias))).sum(1).mean()
    return 2 * softmax + sigmoid / HARD


def parameter_groups(model: torch.nn.Module) -> list[dict[str, object]]:
    """Parameter groups, with weight decay only for matrices."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


def schedule(step: int, steps: int) -> float:
    """The factor for the learning rate: a linear warm-up, then a cosine down to zero."""
    return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def encode(model: Any, pictures: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """L2-normalized float32 features [b, dim] of pictures and captions. Computing in bfloat16 halves the time on
    processors that support it."""
    pixels = (pictures / 127.5 - 1).contiguous(memory_format=torch.channels_last)  # mean and std of 0.5
    with torch.autocast("cpu", torch.bfloat16):
        image, text = model.encode_image(pixels), model.encode_text(tokens)
    return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)


def train(folder: Path, steps: int, seed: int) -> None:
    """Train from scratch with the config in TINY, and write config and weights (float16) to `folder`."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{TINY}", load_weights=False).to(memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    pairs = draw_pairs(open_clip.get_tokenizer(f"local-dir:{TINY}"), seed, FAMILIES)
    print(f"{len(pairs.meanings)} pictures generated in {time.perf_counter() - started:.0f} s", flush=True)

    optimizer = torch.optim.AdamW(parameter_groups(model), lr=LEARNING_RATE, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(schedule, steps=steps))
    model.train()
    for step, rows in enumerate(batches(pairs, steps, torch.Generator().manual_seed(seed)), start=1):
        image, text = encode(model, pairs.pictures[rows], pairs.tokens[rows])
        loss = contrastive_loss(image, text, model.logit_scale.exp(), model.logit_bias, pairs.meanings[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        scheduler.step()
        if step % 100 == 0 or step == steps:
            seconds = time.perf_counter() - started
            print(f"step {step}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
    save(model, folder)
    print(f"trained and saved in {time.perf_counter() - started:.0f} s")


def save(model: torch.nn.Module, folder: Path) -> None:
    """Write the config and the weights, with floats as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != TINY:
        (folder / CONFIG).write_text((TINY / CONFIG).read_text())
    halved = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(halved, metadata={"format": "pt"}))


def main() -> None:
    """Train, calibrate and measure, as requested on the command line."""
    parser = argparse.ArgumentParser(description="Train and measure the built-in model tiny.")
    parser.add_argument("--out", type=Path, default=TINY, help="folder for the config and the weights")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=TRAIN_SEED)
    parser.add_argument("--scenes", type=int, default=1_000, help="number of scenes to measure on")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the weights in --out")
    options = parser.parse_args()
    if not options.evaluate_only:
        train(options.out, options.steps, options.seed)
        found = similarities(options.out, CALIBRATION_SEED, options.scenes, held_out=False)
        (options.out / CALIBRATION).write_text(json.dumps({"min_similarity": calibrate(found)}) + "\n")
    measure(options.out, options.scenes)


if __name__ == "__main__":
    main()
