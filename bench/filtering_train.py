"""Trains the same small CLIP on several training sets, and evaluates it: the second half of bench.filtering_helps.

    python -m bench.filtering_train FOLDER [--samples 20480] [--seeds 1 2 3] [--device cuda]

FOLDER contains one folder of tars per set, as written by `python -m bench.filtering_helps --only-sets FOLDER`. This
half needs torch, open_clip and webdataset, but neither Ray nor a finished dataset, so it also runs on a bare GPU
machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

import open_clip
import safetensors.torch
import torch

from pairmill.pipeline.encode.tiny.draw import BACKGROUNDS, COLORS, SHAPES, Scene, Thing, caption, render
from pairmill.pipeline.encode.tiny.evaluate import distinct_scenes, recall_at_1

TINY_FOLDER = Path(__file__).parents[1] / "pipeline/encode/tiny"
SETS = "sets.json"
"""A file in FOLDER: name of a set -> number of pairs, in the order of the table."""
BATCH_SIZE = 128
NUM_TEST_SCENES = 500


def random_weights(folder: Path, seed: int) -> Path:
    """Write a model with the architecture of `tiny` and random weights. Returns its folder."""
    folder.mkdir()
    config = json.loads((TINY_FOLDER / "open_clip_config.json").read_text())
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config["model_cfg"])
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def train(tars: str, model: Path, options: argparse.Namespace, seed: int, logs: Path) -> Path:
    """Train with open_clip's command-line trainer. Returns the path of the checkpoint."""
    command = [sys.executable, "-m", "open_clip_train.main", "--dataset-type", "webdataset", "--dataset-resampled"]
    command += ["--train-data", tars, "--train-num-samples", str(options.samples), "--model", f"local-dir:{model}"]
    command += ["--batch-size", str(BATCH_SIZE), "--epochs", "1", "--warmup", "40", "--lr", "2e-3", "--workers", "1"]
    command += [
        "--precision",
        "fp32",
        "--device",
        options.device,
        "--seed",
        str(seed),
        "--logs",
        str(logs),
        "--name",
        "run",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2_000:]
    return logs / "run/checkpoints/epoch_1.pt"


@torch.inference_mode()
def evaluate(checkpoint: Path, model_folder: Path) -> dict[str, float]:
    """Evaluate a model on scenes that are in no training set; half of them have combinations that `tiny` never saw."""
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


def train_all(folder: Path, options: argparse.Namespace) -> None:
    """Train on each set with each seed, and print the table."""
    sets: dict[str, int] = json.loads((folder / SETS).read_text())
    results: dict[str, list[dict[str, float]]] = {name: [] for name in sets}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in options.seeds:
            weights = random_weights(Path(temporary, f"weights{seed}"), seed)
            for number, name in enumerate(sets):
                tars = sorted((folder / f"set{number}").glob("*.tar"))
                pattern = f"{folder}/set{number}/{{{tars[0].stem}..{tars[-1].stem}}}.tar"
                checkpoint = train(pattern, weights, options, seed, Path(temporary, f"logs-{seed}-{number}"))
                results[name].append(found := evaluate(checkpoint, weights))
                print(f"seed {seed} {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
    print_table(sets, results)


def print_table(sets: dict[str, int], results: dict[str, list[dict[str, float]]]) -> None:
    """Print one row per set, and whether each filter's worst seed beats the best seed without a filter."""
    measures = list(next(iter(results.values()))[0])
    print(f"\n| set | pairs | {' | '.join(measures)} |\n|---|---|---|---|---|")
    for name, per_seed in results.items():
        cells = [", ".join(f"{each[measure]:.3f}" for each in per_seed) for measure in measures]
        print(f"| {name} | {sets[name]:,} | {' | '.join(cells)} |")
    unfiltered = [name for name in sets if name in ("raw", "random half")]
    for name in [name for name in sets if name not in unfiltered]:
        for measure in measures:
            worst = min(each[measure] for each in results[name])
            best = max(each[measure] for other in unfiltered for each in results[other])
            verdict = "yes" if worst > best else "NO"
            print(f"{name}, {measure}: worst {worst:.3f}, best without a filter {best:.3f}: {verdict}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of training."""
    parser.add_argument("--samples", type=int, default=20_480, help="samples per training run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--device", default="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    add_options(parser)
    options = parser.parse_args()
    train_all(options.folder, options)


if __name__ == "__main__":
    main()
