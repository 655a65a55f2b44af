"""Train and measure the built-in model `tiny`, a small open_clip CLIP, on pictures that `draw` makes.

    python -m pairmill.pipeline.encode.tiny.train                    # train, write the weights, measure
    python -m pairmill.pipeline.encode.tiny.train --evaluate-only    # measure the weights that are there

A batch is made of families: a scene and three near misses of it (one wrong color, one wrong shape, swapped order),
each of them both as picture and as caption, so every member is a hard negative of the other three. Two losses are
added. The softmax loss of CLIP ranks, and learns fast. The sigmoid loss of SigLIP judges each pair alone, so that
one threshold on the cosine similarity means the same for every caption.
"""

import argparse
import io
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
from PIL import Image
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

TINY = Path(__file__).parent
CONFIG = "open_clip_config.json"
WEIGHTS = "model.safetensors"
CALIBRATION = "calibration.json"
SIDE = 64  # of the model's input, in pixels
MEMBERS = 4  # of a family
FAMILIES = 8_000  # drawn once; every step takes some of them
BATCH = 128  # pictures, and captions
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
WARMUP = 50  # steps
HARD = 4.0  # weight of a pair inside a family in the sigmoid loss

TRAIN_SEED, CALIBRATION_SEED, TEST_SEED = 0, 2, 3
KINDS = ("true", "wrong_caption", "wrong_color", "wrong_shape", "swapped_order")


# --- Training data


@dataclass(frozen=True)
class Pairs:
    """Families of captioned pictures, one after the other: N = MEMBERS * families."""

    pictures: Tensor  # (N, 3, SIDE, SIDE) uint8
    tokens: Tensor  # (N, context length) int64
    meanings: Tensor  # (N,) int64; equal where scenes look the same
    easy_families: Tensor  # their numbers

    @property
    def families(self) -> int:
        """Number of families, each a scene and its near misses."""
        return len(self.meanings) // MEMBERS


def family(rng: Random) -> list[Scene]:
    """A scene and three near misses. A scene of one thing has no order to swap: it gets a second wrong color."""
    scene = random_scene(rng)
    third = wrong_color if scene.second is None else swapped_order
    return [scene, wrong_color(scene, rng), wrong_shape(scene, rng), third(scene, rng)]


def draw_families(seed: str, count: int) -> tuple[list[Scene], list[str], npt.NDArray[np.uint8]]:
    """The scenes, captions and pictures (N, SIDE, SIDE, 3) of `count` families."""
    rng = Random(seed)
    scenes = [scene for _ in range(count) for scene in family(rng)]
    captions = [caption(scene, rng) for scene in scenes]
    return scenes, captions, np.stack([np.asarray(render(scene, rng, SIDE)) for scene in scenes])


def draw_pairs(tokenize: Callable[[list[str]], Tensor], seed: int, families: int) -> Pairs:
    """All training data, drawn by two processes."""
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
    """Row numbers (BATCH,) for every step: whole families.

    The first third leaves out "below" and "right of". Which thing lies where depends on the relation AND on the
    order of words, and that is learned several times faster once one half of it is known.
    """
    for step in range(steps):
        known = pairs.easy_families if step < steps // 3 else torch.arange(pairs.families)
        chosen = known[torch.randint(len(known), (BATCH // MEMBERS, 1), generator=generator)]
        yield (chosen * MEMBERS + torch.arange(MEMBERS)).flatten()  # (BATCH / MEMBERS, MEMBERS) -> (BATCH,)


# --- Training


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, meanings: Tensor) -> Tensor:
    """Softmax loss plus sigmoid loss of normalized features (B, width); pairs that look the same are both right."""
    same = (meanings[:, None] == meanings).float()  # (B, B)
    logits = scale * image @ text.T
    right = same / same.sum(1, keepdim=True)
    softmax = -(right * (logits.log_softmax(0) + logits.log_softmax(1))).sum(1).mean()
    number = torch.arange(len(same)) // MEMBERS
    weight = torch.where(number[:, None] == number, HARD, 1.0)
    sigmoid = -(weight * F.logsigmoid((2 * same - 1) * (logits + bias))).sum(1).mean()
    return 2 * softmax + sigmoid / HARD


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to zero: the factor on the learning rate."""
    return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def encode(model: Any, pictures: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Normalized features (B, width) of both. bfloat16 halves the time where the processor knows it."""
    pixels = (pictures / 127.5 - 1).contiguous(memory_format=torch.channels_last)  # mean and std of 0.5
    with torch.autocast("cpu", torch.bfloat16):
        image, text = model.encode_image(pixels), model.encode_text(tokens)
    return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)


def train(folder: Path, steps: int, seed: int) -> None:
    """Train from scratch by the config in TINY; leave config and weights (float16) in `folder`."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{TINY}", load_weights=False).to(memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    pairs = draw_pairs(open_clip.get_tokenizer(f"local-dir:{TINY}"), seed, FAMILIES)
    print(f"{len(pairs.meanings)} pictures drawn in {time.perf_counter() - started:.0f} s", flush=True)

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
    """Write config and weights, halved where they are floats."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != TINY:
        (folder / CONFIG).write_text((TINY / CONFIG).read_text())
    halved = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(halved, metadata={"format": "pt"}))


# --- Measuring


@dataclass(frozen=True)
class Similarities:
    """Cosine similarities of `scenes` distinct pictures; one column of captions per kind."""

    by_kind: dict[str, Tensor]  # kind of KINDS -> (scenes,), fewer for swapped_order
    all_true: Tensor  # (scenes, scenes): every picture with every true caption


def distinct_scenes(rng: Random, count: int, held_out: bool) -> list[Scene]:
    """`count` scenes of which no two look the same, so that every caption fits just one picture."""
    scenes: dict[Scene, Scene] = {}
    while len(scenes) < count:
        scene = random_scene(rng, held_out)
        scenes.setdefault(scene.meaning, scene)
    return list(scenes.values())


def stored_picture(scene: Scene, rng: Random) -> Image.Image:
    """The scene at 256 to 640 pixels a side, through JPEG: what a picture of the web went through."""
    file = io.BytesIO()
    render(scene, rng, rng.randint(256, 640), rng.randint(256, 640)).save(file, "jpeg", quality=95)
    return Image.open(file)


def captions_by_kind(scenes: list[Scene], rng: Random) -> dict[str, list[str]]:
    """A caption of every kind for every scene; swapped order only where there are two things."""
    described: dict[str, list[Scene]] = {
        "true": scenes,
        "wrong_caption": scenes[1:] + scenes[:1],
        "wrong_color": [wrong_color(scene, rng) for scene in scenes],
        "wrong_shape": [wrong_shape(scene, rng) for scene in scenes],
        "swapped_order": [swapped_order(scene, rng) for scene in scenes if scene.second],
    }
    return {kind: [caption(scene, rng) for scene in described[kind]] for kind in KINDS}


@torch.inference_mode()
def similarities(folder: Path, seed: int, count: int, held_out: bool) -> Similarities:
    """Score `count` scenes that were never trained on, as any user of open_clip would."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    rng = Random(f"measure {seed} {held_out}")
    scenes = distinct_scenes(rng, count, held_out)
    pixels = torch.stack([preprocess(stored_picture(scene, rng)) for scene in scenes])
    image = torch.cat([model.encode_image(part, normalize=True) for part in torch.split(pixels, BATCH)])
    text = {
        kind: model.encode_text(tokenize(captions), normalize=True)
        for kind, captions in captions_by_kind(scenes, rng).items()
    }
    pairs_of_things = torch.tensor([scene.second is not None for scene in scenes])
    by_kind = {
        kind: ((image if len(features) == count else image[pairs_of_things]) * features).sum(1)
        for kind, features in text.items()
    }
    return Similarities(by_kind, image @ text["true"].T)


def auc(positive: Tensor, negative: Tensor) -> float:
    """Chance that a random positive scores above a random negative; equal scores count half."""
    above = positive[:, None] - negative
    return float(((above > 0).float() + 0.5 * (above == 0)).mean())


def recall_at_1(scores: Tensor) -> float:
    """Share of rows (queries) whose own column scores highest; a tie with another column is a miss."""
    others = scores.clone().fill_diagonal_(-math.inf).max(1).values
    return float((scores.diagonal() > others).float().mean())


def precision_recall(found: Similarities, threshold: float) -> tuple[float, float]:
    """Of the pairs kept at `threshold`, among as many of each of: true, wrong caption, color and shape."""
    kept = {kind: float((found.by_kind[kind] >= threshold).float().mean()) for kind in KINDS[:4]}
    return kept["true"] / max(sum(kept.values()), 1e-9), kept["true"]


def calibrate(found: Similarities) -> float:
    """The threshold (in steps of 0.005) where the lesser of precision and recall is greatest."""
    thresholds = [step / 200 for step in range(-200, 200)]
    return max(thresholds, key=lambda threshold: min(precision_recall(found, threshold)))


def figures(found: Similarities, threshold: float) -> dict[str, float]:
    """All that the model card states about one set of scenes."""
    precision, recall = precision_recall(found, threshold)
    true = found.by_kind["true"]
    return {
        "R@1 text to image": recall_at_1(found.all_true.T),
        "R@1 image to text": recall_at_1(found.all_true),
        **{f"AUC against {kind.replace('_', ' ')}": auc(true, found.by_kind[kind]) for kind in KINDS[1:]},
        f"precision at {threshold}": precision,
        f"recall at {threshold}": recall,
    }


def measure(folder: Path, count: int) -> None:
    """Print a table of figures on unseen pictures: of trained combinations, and with held-out ones."""
    threshold = float(json.loads((folder / CALIBRATION).read_text())["min_similarity"])
    columns = [figures(similarities(folder, TEST_SEED, count, held_out), threshold) for held_out in (False, True)]
    print(f"| {count} unseen pictures | of trained combinations | with held-out combinations |\n|---|---|---|")
    for name in columns[0]:
        print(f"| {name} | {columns[0][name]:.4f} | {columns[1][name]:.4f} |")


def main() -> None:
    """Train, calibrate and measure, as the command line asks."""
    parser = argparse.ArgumentParser(description="Train and measure the built-in model tiny.")
    parser.add_argument("--out", type=Path, default=TINY, help="folder of config and weights")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=TRAIN_SEED)
    parser.add_argument("--scenes", type=int, default=1_000, help="to measure on")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the weights in --out")
    options = parser.parse_args()
    if not options.evaluate_only:
        train(options.out, options.steps, options.seed)
        found = similarities(options.out, CALIBRATION_SEED, options.scenes, held_out=False)
        (options.out / CALIBRATION).write_text(json.dumps({"min_similarity": calibrate(found)}) + "\n")
    measure(options.out, options.scenes)


if __name__ == "__main__":
    main()
