"""Measures the built-in model `tiny` on synthetic pictures that it never saw. Calls the model as users of open_clip do.

    python -m pairmill.pipeline.encode.tiny.train --evaluate-only

This module also chooses the threshold in `calibration.json`.
"""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random

import open_clip
import torch
from PIL import Image
from torch import Tensor

from pairmill.pipeline.encode.tiny.draw import (
    Scene,
    caption,
    random_scene,
    render,
    swapped_order,
    wrong_color,
    wrong_shape,
)

CALIBRATION = "calibration.json"
CALIBRATION_SEED, TEST_SEED = 2, 3  # 0 is the seed used in training
KINDS = ("true", "wrong_caption", "wrong_color", "wrong_shape", "swapped_order")
_BATCH = 128


@dataclass(frozen=True)
class Similarities:
    """Cosine similarities of n distinct pictures with captions of each kind."""

    by_kind: dict[str, Tensor]  # kind of KINDS -> [n], fewer for swapped_order
    all_true: Tensor  # [n, n]: every picture with every true caption


def distinct_scenes(rng: Random, count: int, held_out: bool) -> list[Scene]:
    """`count` scenes that all look different, so that every caption fits exactly one picture."""
    scenes: dict[Scene, Scene] = {}
    while len(scenes) < count:
        scene = random_scene(rng, held_out)
        scenes.setdefault(scene.meaning, scene)
    return list(scenes.values())


def stored_picture(scene: Scene, rng: Random) -> Image.Image:
    """A picture of the scene at 256 to 640 pixels per side, stored as JPEG, like a picture from the web."""
    file = io.BytesIO()
    render(scene, rng, rng.randint(256, 640), rng.randint(256, 640)).save(file, "jpeg", quality=95)
    return Image.open(file)


def captions_by_kind(scenes: list[Scene], rng: Random) -> dict[str, list[str]]:
    """Kind -> one caption per scene. Only scenes with two things have a caption with swapped order."""
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
    """The similarities for `count` scenes that were never used in training."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    rng = Random(f"measure {seed} {held_out}")
    scenes = distinct_scenes(rng, count, held_out)
    pixels = torch.stack([preprocess(stored_picture(scene, rng)) for scene in scenes])
    image = torch.cat([model.encode_image(part, normalize=True) for part in torch.split(pixels, _BATCH)])
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
    """The probability that a random positive scores above a random negative. Equal scores count half."""
    above = positive[:, None] - negative
    return float(((above > 0).float() + 0.5 * (above == 0)).mean())


def recall_at_1(scores: Tensor) -> float:
    """The fraction of rows (queries) whose own column scores highest. A tie with another column is a miss."""
    others = scores.clone().fill_diagonal_(-math.inf).max(1).values
    return float((scores.diagonal() > others).float().mean())


def precision_recall(found: Similarities, threshold: float) -> tuple[float, float]:
    """Precision and recall at `threshold`, on equal numbers of true captions, wrong captions, wrong colors and wrong
    shapes."""
    kept = {kind: float((found.by_kind[kind] >= threshold).float().mean()) for kind in KINDS[:4]}
    return kept["true"] / max(sum(kept.values()), 1e-9), kept["true"]


def calibrate(found: Similarities) -> float:
    """The threshold (in steps of 0.005) that maximizes the lower of precision and recall."""
    thresholds = [step / 200 for step in range(-200, 200)]
    return max(thresholds, key=lambda threshold: min(precision_recall(found, threshold)))


def figures(found: Similarities, threshold: float) -> dict[str, float]:
    """The model card's figures for one set of scenes."""
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
    """Print a table of the figures on unseen pictures, for trained and for held-out combinations."""
    threshold = float(json.loads((folder / CALIBRATION).read_text())["min_similarity"])
    columns = [figures(similarities(folder, TEST_SEED, count, held_out), threshold) for held_out in (False, True)]
    print(f"| {count} unseen pictures | of trained combinations | with held-out combinations |\n|---|---|---|")
    for name in columns[0]:
        print(f"| {name} | {columns[0][name]:.4f} | {columns[1][name]:.4f} |")
