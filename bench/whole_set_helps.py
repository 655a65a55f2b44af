"""Measures whether steps that see the whole set improve training: deduplication, balance and repetition.

    python -m bench.whole_set_helps [--pool 6000] [--samples 20480] [--seeds 1 2 3]

Like bench.filtering_helps, but with a pool that has the faults that these steps correct. A third of its pairs are new:
their 64 combinations of color and shape follow Zipf's law, so the most frequent combination is in a fifth of them and
the rarest in a few. Half of the new pairs have a caption that gets something wrong. The other two thirds of the pool
are near copies of a few stock pictures, cropped and encoded again, each with a correct caption in new words.

Training sets are made with and without each step. All models are trained from the same random weights, with the same
number of samples.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from random import Random

from PIL import Image

from bench.filtering_helps import CHANGE_SCENE, Experiment, Steps, jpeg, run
from pairmill.pipeline.encode.tiny.draw import COLORS, SHAPES, Scene, Thing, caption, random_scene, render

THINGS = [(color, shape) for shape in SHAPES for color in COLORS]
"""The combinations of color and shape, the most frequent first."""
SHARE_OF_COPIES, NUM_STOCK = 2 / 3, 40
SHARE_OF_WRONG = 0.5
PER_ENTRY = 40


def zipf_scene(rng: Random) -> Scene:
    """A random scene. Its objects are drawn from THINGS, the n-th with a probability proportional to 1 / n."""
    weights = [1 / rank for rank in range(1, len(THINGS) + 1)]
    scene, looks = random_scene(rng), rng.choices(THINGS, weights, k=2)
    first, second = (Thing(*look, scene.first.size) for look in looks)
    if scene.second is None or looks[0] == looks[1]:
        return Scene(scene.background, first)
    return Scene(scene.background, first, scene.relation, second)


def near_copy(picture: bytes, rng: Random) -> bytes:
    """The picture with up to 4% of each side cropped off, encoded again."""
    image = Image.open(io.BytesIO(picture))
    left, top, right, bottom = (rng.randrange(6) for _ in range(4))
    made = io.BytesIO()
    image.crop((left, top, image.width - right, image.height - bottom)).save(made, "jpeg", quality=rng.randint(60, 95))
    return made.getvalue()


def pool(count: int, seed: int) -> Iterator[tuple[bytes, str, str]]:
    """Yield (picture, caption, kind of pair) for `count` pairs."""
    rng = Random(f"whole set helps {seed}")
    stock = [(scene := zipf_scene(rng), jpeg(render(scene, rng, 128))) for _ in range(NUM_STOCK)]
    for _ in range(count):
        if rng.random() < SHARE_OF_COPIES:
            scene, picture = rng.choices(stock, [1 / rank for rank in range(1, NUM_STOCK + 1)])[0]
            yield near_copy(picture, rng), caption(scene, rng), "copy"
            continue
        scene = zipf_scene(rng)
        wrong = rng.choice(list(CHANGE_SCENE)) if rng.random() < SHARE_OF_WRONG else None
        yield jpeg(render(scene, rng, 128)), caption(CHANGE_SCENE[wrong](scene, rng) if wrong else scene, rng), "new"


def experiment(folder: Path, count: int) -> Experiment:
    """Write the pool, and the training sets with and without each step."""
    entries = folder / "entries.txt"
    entries.write_text("".join(f"{color} {shape}\n" for color, shape in THINGS))
    dedup: Steps = [{"dedup": {"by": "embedding", "model": "tiny", "threshold": 0.97, "best": "similarity"}}]
    balance: Steps = [{"balance": {"by": "concept", "entries": str(entries), "curve": PER_ENTRY}}]
    repeat: Steps = [{"repeat": {"by": "30 * similarity", "mean": 1.0}}]
    subsets = {
        "raw": [],
        "dedup": dedup,
        "balance": balance,
        "repeat": repeat,
        "dedup, balance": dedup + balance,
        "dedup, balance, repeat": dedup + balance + repeat,
    }
    return Experiment(list(pool(count, seed=1)), {}, subsets)


if __name__ == "__main__":
    run(__doc__, experiment, 6_000)
