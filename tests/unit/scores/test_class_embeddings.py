"""Tests that classes in groups of any size get the mean of their own prompts, and that progress is reported."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest

from pairmill.pipeline.encode.clip_model import ClipModel
from pairmill.pipeline.score.class_embeddings import embed_classes
from pairmill.pipeline.score.kind import Floats


class Model:
    """Embeds a caption according to the numbers in it."""

    logit_scale, logit_bias = 100.0, None

    def encode_captions(self, captions: Sequence[str]) -> Floats:
        return np.array([self.embed(caption) for caption in captions], np.float32)

    def embed(self, caption: str) -> Floats:
        vector = np.random.default_rng([int(word) for word in caption.split()]).standard_normal(8)
        made: Floats = (vector / np.linalg.norm(vector)).astype(np.float32)
        return made


@pytest.mark.parametrize("prompts", [1, 80, 700])
def test_classes_are_the_means_of_their_prompts_and_progress_counts_prompts(prompts: int) -> None:
    model, reported = Model(), list[tuple[int, int]]()
    classes = [(f"class {number}", [f"{number} {each}" for each in range(prompts)]) for number in range(20)]
    table = embed_classes(cast(ClipModel, model), classes, lambda done, total: reported.append((done, total)))
    for row, (_, texts) in enumerate(classes):
        mean = np.mean([model.embed(text) for text in texts], axis=0)
        assert np.allclose(table.embeddings[row], mean / np.linalg.norm(mean), atol=1e-6)
    assert (reported[0], reported[-1]) == ((0, 20 * prompts), (20 * prompts, 20 * prompts))
    steps = np.diff([done for done, _ in reported])
    assert steps.min() > 0 and steps.max() < 512 + prompts
