"""Measures whether filtering improves training, with the whole pipeline on a small scale: build, select, export, train.

    python -m bench.filtering_helps [--pool 4000] [--samples 40000] [--seeds 1 2 3]

The pool consists of synthetic (rendered) pictures. Half of the captions are wrong: they describe another scene, or get
one color or shape wrong. The pool also has copies of pictures under other URLs with other captions, and junk (noise,
plain colors). Half of the correctly captioned pairs show combinations of color and shape that `tiny`, which scores the
pool, never saw. There are three training sets: the whole pool, a random half, and what select keeps. For each seed, the
same small CLIP is trained on each set, from the same random weights and for the same number of samples. Measures
retrieval (R@1, both ways) on 500 new scenes, and zero-shot accuracy over 64 kinds of colored shapes.
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
from pairmill.schemas.subset import SelectJob

THRESHOLD = json.loads((TINY_FOLDER / "calibration.json").read_text())["min_similarity"]
SUBSETS = {
    "raw": [],
    "random half": [{"sample": {"fraction": 0.5, "seed": 1}}],
    "selected": [
        {"where": f"similarity >= {THRESHOLD}"},
        {"dedup": {"by": "phash", "distance": 2, "best": "similarity"}},
    ],
}
BATCH_SIZE = 128
EVALUATED = 500


def jpeg(image: Image.Image) -> bytes:
    """The picture as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "jpeg", quality=92)
    return file.getvalue()


def pool(count: int, seed: int) -> Iterator[tuple[bytes, str, str]]:
    """(picture, caption, kind of pair)"""
    rng, last = Random(f"filtering helps {seed}"), b""
    for number in range(count):
        scene = random_scene(rng, held_out=number % 2 == 0)
        kind = rng.choices(
            ["right", "other scene", "wrong color", "wrong shape", "copy", "junk"], [40, 20, 12, 8, 10, 10]
        )[0]
        described = {"wrong color": wrong_color, "wrong shape": wrong_shape}
        if kind in ("right", *described):
            last = jpeg(render(scene, rng, 128))
            shown = described[kind](scene, rng) if kind in described else scene
            yield last, caption(shown, rng), kind
        elif kind == "junk" or not last:
            noise = np.random.default_rng(number).integers(0, 256, (128, 128, 3), dtype=np.uint8)
            plain = Image.new("RGB", (128, 128), rng.choice(list(COLORS.values())))
            yield jpeg(Image.fromarray(noise) if rng.random() < 0.5 else plain), caption(scene, rng), "junk"
        else:
            picture = last if kind == "copy" else jpeg(render(random_scene(rng), rng, 128))
            yield picture, caption(scene, rng), kind


def make_sets(folder: Path, count: int) -> dict[str, tuple[str, int]]:
    """Build the pool, select and export three subsets; name -> (tars in open_clip's notation, number of pairs)."""
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
    sets = {}
    for name, steps in SUBSETS.items():
        short = name.replace(" ", "-")
        subset = select(SelectJob.model_validate({"dataset": f"{folder}/out", "name": short, "steps": steps}))
        job = {"dataset": f"{folder}/out", "subset": short, "output": f"{folder}/{short}", "samples_per_file": 100}
        files = export(ExportJob.model_validate(job)).record.num_files
        sets[name] = (f"{folder}/{short}/{{00000..{files - 1:05d}}}.tar", subset.rows_out)
    return sets


def random_weights(folder: Path, seed: int) -> Path:
    """The architecture of `tiny` with random weights."""
    folder.mkdir()
    config = json.loads((TINY_FOLDER / "open_clip_config.json").read_text())
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config["model_cfg"])
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def train(tars: str, model: Path, samples: int, seed: int, logs: Path) -> Path:
    """Run open_clip's trainer as its users do; returns the checkpoint."""
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

    scenes = distinct_scenes(rng, EVALUATED // 2, False) + distinct_scenes(rng, EVALUATED // 2, True)
    texts = model.encode_text(tokenize([caption(scene, rng) for scene in scenes]), normalize=True)
    scores = image_features(scenes) @ texts.T
    things = [Thing(color, shape) for color in COLORS for shape in SHAPES]
    labels = [rng.randrange(len(things)) for _ in range(EVALUATED)]
    shown = image_features([Scene(rng.choice(list(BACKGROUNDS)), things[label]) for label in labels])
    prompts = [[f"{thing.words} on a {background} background" for background in BACKGROUNDS] for thing in things]
    classes = torch.stack([model.encode_text(tokenize(four), normalize=True).mean(0) for four in prompts])
    right = (shown @ classes.T).argmax(1) == torch.tensor(labels)
    return {
        "zero-shot": float(right.float().mean()),
        "text to image R@1": recall_at_1(scores.T),
        "image to text R@1": recall_at_1(scores),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=4_000)
    parser.add_argument("--samples", type=int, default=40_000, help="samples seen per training run")
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
        for name, of_seeds in results.items():
            cells = [", ".join(f"{each[measure]:.3f}" for each in of_seeds) for measure in of_seeds[0]]
            print(f"| {name} | {sets[name][1]:,} | {' | '.join(cells)} |")
        for measure in results["raw"][0]:
            worst = min(each[measure] for each in results["selected"])
            best = max(each[measure] for name in ("raw", "random half") for each in results[name])
            print(f"{measure}: worst selected {worst:.3f}, best other {best:.3f}: {'yes' if worst > best else 'NO'}")


if __name__ == "__main__":
    main()
