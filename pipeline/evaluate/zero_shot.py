"""Measures zero-shot classification of labeled pictures: top-1 and top-5 accuracy, overall and per class, and the most
frequent confusions.

The predicted class is the one whose embedding has the highest cosine with the picture's embedding. The model's
temperature and bias change probabilities, but never the order of the classes.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pairmill.pipeline.common.text import clean_text, counted
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.reader.embeddings import Floats, Halves
from pairmill.pipeline.score.embeddings import float32_blocks

Counts = npt.NDArray[np.int64]

TOP_K = 5
_MAX_UNKNOWN = 1_000
"""Maximum number of distinct unknown labels that are counted to find the most frequent one."""
_INTEGER = re.compile("0|-?[1-9][0-9]*")
_MAX_CELLS = 1 << 22
"""Maximum number of similarities in memory at once."""


@dataclass(frozen=True)
class Confusion:
    """The number of pictures of one class that were mistaken for another class."""

    true: int
    predicted: int
    count: int


class ClassIndex:
    """Turns labels into class numbers, and counts the labels that match no class."""

    def __init__(self, names: Sequence[str]) -> None:
        counts = Counter(names)
        self._index = {name: index for index, name in enumerate(names) if counts[name] == 1}
        self._ambiguous = {name for name, count in counts.items() if count > 1}
        self._names = names
        self._unknown: Counter[str] = Counter()  # at most _MAX_UNKNOWN distinct labels
        self._num_unknown = 0
        self._num_ambiguous = 0

    def of(self, labels: pa.Array) -> Counts:
        """The class number of each label [n]; -1 if it matches no class. Integers are all class numbers, starting at 0,
        or all class names; other labels are class names. Raises EvaluateError if integers could be both."""
        index = self._of_integers() if pa.types.is_integer(labels.type) else self._index
        return np.array([self._one(str(label), index) for label in labels.to_pylist()], np.int64)

    def _of_integers(self) -> dict[str, int]:
        """Text of each integer label -> its class number. It depends only on the class names, so that neither the
        shards nor a subset can change the meaning of a label."""
        numbers = {str(number): number for number in range(len(self._names))}
        integers = {name: number for number, name in enumerate(self._names) if _INTEGER.fullmatch(name)}
        if all(name == str(number) for name, number in integers.items()):
            return numbers
        if len(integers) == len(self._names) and not integers.keys() & numbers.keys():
            return self._index
        name, number = next(each for each in integers.items() if each[0] != str(each[1]))
        raise EvaluateError(
            f"the labels are integers, which could be class numbers or class names: class {number:,} is named "
            f"{clean_text(name, 60)!r}. Use class names as labels, as text"
        )

    def _one(self, label: str, index: dict[str, int]) -> int:
        if index is self._index and label in self._ambiguous:
            self._num_ambiguous += 1
        elif label not in index:
            self._num_unknown += 1
            if label in self._unknown or len(self._unknown) < _MAX_UNKNOWN:
                self._unknown[label] += 1
        return index.get(label, -1)

    def facts(self) -> list[str]:
        """Lines that say which labels were left out."""
        lines = []
        if self._unknown:
            name = self._unknown.most_common(1)[0][0]
            rows = counted(self._num_unknown, "row")
            lines.append(f"{rows} left out: label not among the classes (for example {clean_text(name, 60)!r})")
        if self._num_ambiguous:
            rows = counted(self._num_ambiguous, "row")
            lines.append(f"{rows} left out: label shared by several classes; use class numbers as labels instead")
        return lines


class Accuracy:
    """Counts hits, a block of rows at a time."""

    def __init__(self, classes: Floats) -> None:
        """`classes`: embeddings of the classes, float32 [classes, dim], L2-normalized."""
        self._classes = torch.from_numpy(np.array(classes, np.float32))
        self.totals, self.top1, self.top5 = (np.zeros(len(classes), np.int64) for _ in range(3))
        self._confusions: Counter[tuple[int, int]] = Counter()

    def add(self, vectors: Halves, targets: Counts) -> None:
        """Count rows with embeddings [n, dim] and class numbers [n]."""
        step = max(1, _MAX_CELLS // len(self._classes))
        with torch.inference_mode():
            for block, inputs in float32_blocks(vectors):
                wanted = torch.from_numpy(targets[block])
                for start in range(0, len(inputs), step):
                    self._add(inputs[start : start + step], wanted[start : start + step])

    def _add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        similarities = inputs @ self._classes.T  # [block, classes]
        own = similarities.gather(1, targets[:, None])
        is_before = torch.arange(len(self._classes)) < targets[:, None]  # of equally similar classes, the first wins
        ranks = ((similarities > own) | ((similarities == own) & is_before)).sum(dim=1).numpy()
        true, predicted = targets.numpy(), similarities.argmax(dim=1).numpy()
        self.totals += np.bincount(true, minlength=len(self.totals))
        self.top1 += np.bincount(true[ranks == 0], minlength=len(self.totals))
        self.top5 += np.bincount(true[ranks < TOP_K], minlength=len(self.totals))
        wrong = ranks > 0
        self._confusions.update(zip(true[wrong].tolist(), predicted[wrong].tolist(), strict=True))

    @property
    def rows(self) -> int:
        """Number of rows counted."""
        return int(self.totals.sum())

    @property
    def mean_per_class(self) -> float:
        """Mean of the top-1 accuracies of the classes that occur."""
        occurs = self.totals > 0
        return float((self.top1[occurs] / self.totals[occurs]).mean())

    def confusions(self, most: int) -> list[Confusion]:
        """The most frequent confusions, at most `most`, in descending order. Ties are sorted by class numbers."""
        ordered = sorted(self._confusions.items(), key=lambda each: (-each[1], each[0]))
        return [Confusion(true, predicted, count) for (true, predicted), count in ordered[:most]]


def check_dim(classes: Floats, dim: int) -> None:
    """Raise EvaluateError if the class embeddings and the picture embeddings differ in dimension."""
    if classes.shape[1] != dim:
        raise EvaluateError(
            f"the class embeddings have {classes.shape[1]:,} dimensions, but the picture embeddings have {dim:,}"
        )
