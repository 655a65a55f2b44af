"""Measures whether filtering improves training, with the whole pipeline on a small scale: build, select, export, train.

    python -m bench.filtering_helps [--pool 4000] [--samples 40000] [--seeds 1 2 3]

The pool consists of synthetic (rendered) pictures. On average, 40% of its pairs have a correct caption. 40% have a
wrong caption, which describes another scene (20%), or gets one color (12%) or one shape (8%) wrong. 10% repeat the
previous picture, under another URL and with the caption of another scene, and 10% are junk (noise or a plain color).
Half of the scenes have combinations of color and shape that `tiny`, which scores the pool, never saw.

The training sets are the whole pool, a random half of it, the rows above a threshold of similarity, each picture once,
and the better half by similarity, by negCLIPLoss and by a mix of both. For each seed, the same small CLIP is trained on
each set, from the same random weights and with the same number of samples. Then its retrieval (R@1, in both directions)
is measured on 500 new scenes, and its zero-shot accuracy over 64 kinds of colored shapes.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from PIL import Image

from bench.web import serving
from pairmill.jobs.build import build
from pairmill.jobs.export import export
from pairmill.jobs.score import score
from pairmill.jobs.select import select
from pairmill.pipeline.encode.tiny.draw import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    Scene,
    Thing,
    caption,
    random_scene,
    render,
    wrong_color,
    wrong_shape,
)
from pairmill.pipeline.encode.tiny.evaluate import distinct_scenes, recall_at_1
from pairmill.pipeline.encode.weights import TINY_FOLDER
from pairmill.schemas.export import ExportJob
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.scores import ScoreJob
from pairmill.schemas.subset import SelectJob

Steps = list[dict[str, object]]

THRESHOLD = json.loads((TINY_FOLDER / "calibration.json").read_text())["min_similarity"]
SCORES: dict[str, dict[str, object]] = {
    "neg_clip": {"neg_clip": {"batch": 4_096, "temperature": 0.07, "repeats": 1}},
    "quality": {"mix": "0.7 * rank(neg_clip) + 0.3 * rank(similarity)"},
}
SUBSETS: dict[str, Steps] = {
    "raw": [],
    "random half": [{"sample": {"fraction": 0.5, "seed": 1}}],
    "threshold": [
        {"where": f"similarity >= {THRESHOLD}"},
        {"dedup": {"by": "phash", "distance": 2, "best": "similarity"}},
    ],
    "similarity half": [{"top": {"by": "similarity", "fraction": 0.5}}],
    "neg_clip half": [{"top": {"by": "neg_clip", "fraction": 0.5}}],
    "mix half": [{"top": {"by": "quality", "fraction": 0.5}}],
}
BATCH_SIZE = 128
NUM_TEST_SCENES = 500
PAIR_KINDS = {"right": 40, "other scene": 20, "wrong color": 12, "wrong shape": 8, "copy": 10, "junk": 10}
"""Kind of pair -> its average percentage of the pool."""
CHANGE_SCENE = {"wrong color": wrong_color, "wrong shape": wrong_shape}


def jpeg(image: Image.Image) -> bytes:
    """The picture as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "jpeg", quality=92)
    return file.getvalue()


def pool(count: int, seed: int) -> Iterator[tuple[bytes, str, str]]:
    """Yield (picture, caption, kind of pair) for `count` pairs."""
    rng, last = Random(f"filtering helps {seed}"), b""
    for number in range(count):
        scene = random_scene(rng, held_out=number % 2 == 0)
        kind = rng.choices(list(PAIR_KINDS), list(PAIR_KINDS.values()))[0]
        if kind in ("right", *CHANGE_SCENE):
            last = jpeg(render(scene, rng, 128))
            caption_scene = CHANGE_SCENE[kind](scene, rng) if kind in CHANGE_SCENE else scene
            yield last, caption(caption_scene, rng), kind
        elif kind == "junk" or not last:
            noise = np.random.default_rng(number).integers(0, 256, (128, 128, 3), dtype=np.uint8)
            plain = Image.new("RGB", (128, 128), rng.choice(list(COLORS.values())))
            yield jpeg(Image.fromarray(noise) if rng.random() < 0.5 else plain), caption(scene, rng), "junk"
        else:
            picture = last if kind == "copy" else jpeg(render(random_scene(rng), rng, 128))
            yield picture, caption(scene, rng), kind


def make_sets(folder: Path, count: int) -> dict[str, tuple[str, int]]:
    """Build and score the pool, and select and export the subsets. Name -> (tars in open_clip's notation, number of
    pairs)."""
    pairs = list(pool(count, seed=1))
    with serving([picture for picture, _, _ in pairs]) as bases:
        urls = [f"{bases[n % len(bases)]}/{n}.jpg" for n in range(count)]
        columns = {"url": urls, "caption": [pair[1] for pair in pairs], "kind": [pair[2] for pair in pairs]}
        pq.write_table(pa.table(columns), folder / "in.parquet")
        values = {
            "source": {"paths": [f"{folder}/in.parquet"]},
            "output": f"{folder}/out",
            "shard_rows": 500,
            "models": [{"name": "tiny"}],
            "fetch": {"allow_networks": ["127.0.0.0/8"]},
        }
        assert build(BuildJob.model_validate(values)).rows_in == count
    for score_name, kind in SCORES.items():
        score(ScoreJob.model_validate({"dataset": f"{folder}/out", "name": score_name, **kind}))
    sets = {}
    for name, steps in SUBSETS.items():
        short = name.replace(" ", "-").replace("_", "-")
        subset = select(SelectJob.model_validate({"dataset": f"{folder}/out", "name": short, "steps": steps}))
        job = {"dataset": f"{folder}/out", "subset": short, "output": f"{folder}/{short}", "samples_per_file": 100}
        files = export(ExportJob.model_validate(job)).record.num_files
        sets[name] = (f"{folder}/{short}/{{00000..{files - 1:05d}}}.tar", subset.rows_out)
    return sets


def random_weights(folder: Path, seed: int) -> Path:
    """Write a model with the architecture of `tiny` and random weights. Returns its folder."""
    folder.mkdir()
    config = json.loads((TINY_FOLDER / "open_clip_config.json").read_text())
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config["model_cfg"])
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def train(tars: str, model: Path, samples: int, seed: int, logs: Path) -> Path:
    """Train with open_clip's command-line trainer. Returns the path of the checkpoint."""
    command = [sys.executable, "-m", "open_clip_train.main", "--dataset-type", "webdataset", "--dataset-resampled"]
    command += ["--train-data", tars, "--train-num-samples", str(samples), "--model", f"local-dir:{model}"]
    command += ["--batch-size", str(BATCH_SIZE), "--epochs", "1", "--warmup", "40", "--lr", "2e-3", "--workers", "1"]
    command += ["--precision", "fp32", "--device", "cpu", "--seed", str(seed), "--logs", str(logs), "--name", "run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2_000:]
    return logs / "run/checkpoints/epoch_1.pt"


@torch.inference_mode()
def evaluate(checkpoint: Path, model_folder: Path) -> dict[str, float]:
    """Evaluate on scenes that are in no training set, half of them with combinations that `tiny` never saw."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{model_folder}")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    model.load_state_dict(state)
    model.eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{model_folder}")
    rng = Random("filtering helps, measured")

    def image_features(scenes: list[Scene]) -> torch.Tensor:
        pictures = torch.stack([preprocess(render(scene, rng, 128)) for scene in scenes])
        features: torch.Tensor = model.encode_image(pictures, normalize=True)
        return features

    scenes = distinct_scenes(rng, NUM_TEST_SCENES // 2, False) + distinct_scenes(rng, NUM_TEST_SCENES // 2, True)
    texts = model.encode_text(tokenize([caption(scene, rng) for scene in scenes]), normalize=True)
    scores = image_features(scenes) @ texts.T
    things = [Thing(color, shape) for color in COLORS for shape in SHAPES]
    labels = [rng.randrange(len(things)) for _ in range(NUM_TEST_SCENES)]
    pictures = image_features([Scene(rng.choice(list(BACKGROUNDS)), things[label]) for label in labels])
    prompts = [[f"{thing.words} on a {background} background" for background in BACKGROUNDS] for thing in things]
    classes = torch.stack([model.encode_text(tokenize(texts), normalize=True).mean(0) for texts in prompts])
    is_correct = (pictures @ classes.T).argmax(1) == torch.tensor(labels)
    return {
        "zero-shot": float(is_correct.float().mean()),
        "text to image R@1": recall_at_1(scores.T),
        "image to text R@1": recall_at_1(scores),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=4_000)
    parser.add_argument("--samples", type=int, default=40_000, help="samples per training run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sets = make_sets(folder, options.pool)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in sets}
        for seed in options.seeds:
            weights = random_weights(folder / f"weights{seed}", seed)
            for name, (tars, _) in sets.items():
                logs = folder / f"logs-{seed}-{name.replace(' ', '-')}"
                found = evaluate(train(tars, weights, options.samples, seed, logs), weights)
                results[name].append(found)
                print(f"seed {seed} {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
        print(f"\n| set | pairs | {' | '.join(next(iter(results.values()))[0])} |\n|---|---|---|---|---|")
        for name, per_seed in results.items():
            cells = [", ".join(f"{each[measure]:.3f}" for each in per_seed) for measure in per_seed[0]]
            print(f"| {name} | {sets[name][1]:,} | {' | '.join(cells)} |")
        for name in [name for name in SUBSETS if name not in ("raw", "random half")]:
            for measure in results["raw"][0]:
                worst = min(each[measure] for each in results[name])
                best = max(each[measure] for other in ("raw", "random half") for each in results[other])
                verdict = "yes" if worst > best else "NO"
                print(f"{name}, {measure}: worst {worst:.3f}, best without a filter {best:.3f}: {verdict}")


if __name__ == "__main__":
    main()
