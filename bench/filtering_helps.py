"""Measures whether filtering improves training, with the whole pipeline on a small scale: build, select, export, train.

    python -m bench.filtering_helps [--pool 3000] [--samples 20480] [--seeds 1 2 3]

The pool consists of synthetic (rendered) pictures. On average, 40% of its pairs have a correct caption. 40% have a
wrong caption, which describes another scene (20%), or gets one color (12%) or one shape (8%) wrong. 10% repeat the
previous picture, under another URL and with the caption of another scene, and 10% are junk (noise or a plain color).
Half of the scenes have combinations of color and shape that `tiny`, which scores the pool, never saw.

The training sets are the whole pool, a random half of it, the rows above a similarity threshold (without near
duplicates), and the better half by similarity, by negCLIPLoss and by a mix of both. For each seed, the same small CLIP
is trained on each set, from the same random weights and with the same number of samples. Then its retrieval (R@1, in
both directions) is measured on 500 new scenes, and its zero-shot accuracy over 64 kinds of colored shapes.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bench.filtering_train import SETS, add_options, train_all
from bench.web import serving
from pairmill.jobs.build import build
from pairmill.jobs.export import export
from pairmill.jobs.score import score
from pairmill.jobs.select import select
from pairmill.pipeline.encode.tiny.draw import (
    COLORS,
    caption,
    random_scene,
    render,
    wrong_color,
    wrong_shape,
)
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


@dataclass(frozen=True)
class Experiment:
    """A pool of pairs, and the training sets to make of it."""

    pairs: Sequence[tuple[bytes, str, str]]
    """(picture, caption, kind of pair) for each pair."""
    scores: Mapping[str, dict[str, object]]
    """Name -> score, in the order in which the scores are added."""
    subsets: Mapping[str, Steps]


def make_sets(folder: Path, experiment: Experiment) -> None:
    """Build and score the pool, and select and export the subsets, each to its own folder of tars."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = experiment.pairs
    with serving([picture for picture, _, _ in pairs]) as bases:
        urls = [f"{bases[n % len(bases)]}/{n}.jpg" for n in range(len(pairs))]
        columns = {"url": urls, "caption": [pair[1] for pair in pairs], "kind": [pair[2] for pair in pairs]}
        pq.write_table(pa.table(columns), folder / "in.parquet")
        values = {
            "source": {"paths": [f"{folder}/in.parquet"]},
            "output": f"{folder}/out",
            "shard_rows": 500,
            "models": [{"name": "tiny"}],
            "fetch": {"allow_networks": ["127.0.0.0/8"]},
        }
        assert build(BuildJob.model_validate(values)).rows_in == len(pairs)
    for score_name, kind in experiment.scores.items():
        score(ScoreJob.model_validate({"dataset": f"{folder}/out", "name": score_name, **kind}))
    sets = {}
    for number, (name, steps) in enumerate(experiment.subsets.items()):
        subset = select(SelectJob.model_validate({"dataset": f"{folder}/out", "name": f"set{number}", "steps": steps}))
        job = {"dataset": f"{folder}/out", "subset": f"set{number}", "output": f"{folder}/set{number}"}
        export(ExportJob.model_validate({**job, "samples_per_file": 100}))
        sets[name] = subset.rows_out
    (folder / SETS).write_text(json.dumps(sets))


def run(description: str | None, make: Callable[[Path, int], Experiment], pool_size: int) -> None:
    """Run the command line of a benchmark of this kind. `make` is given a new folder and the size of the pool."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=pool_size)
    parser.add_argument("--only-sets", type=Path, metavar="FOLDER", help="write the sets here, and do not train")
    add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.only_sets or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_sets(folder, make(folder, options.pool))
        if options.only_sets is None:
            train_all(folder, options)


if __name__ == "__main__":
    run(__doc__, lambda folder, count: Experiment(list(pool(count, seed=1)), SCORES, SUBSETS), 3_000)
