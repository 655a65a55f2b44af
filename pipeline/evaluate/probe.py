"""Trains a linear probe: logistic regression on embeddings, with cross-validation.

As in CLIP's paper (Radford et al. 2021, 2103.00020, appendix A.3): scikit-learn's L-BFGS with at most 1,000 iterations.
The strength of the L2 penalty, lambda, is searched on a grid of 96 logarithmic steps between 1e-6 and 1e6: first
coarsely, then around the best value, with a step that is halved each time. There are two differences. The features are
the stored embeddings, after the projection, while CLIP takes them before the projection. The best strength is the one
with the lowest log loss, which has no ties on a few hundred labels, while CLIP compares accuracies.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.examples import Doubles
from pairmill.pipeline.select.keys import U64

Booleans = npt.NDArray[np.bool_]
Folds = npt.NDArray[np.int64]

FOLDS = 5
MAX_ITERATIONS = 1_000
TOLERANCE = 1e-6
"""Tolerance for the gradient of the mean loss. The gradients of unit vectors are so small that with scikit-learn's
default, 1e-4, training stops after a dozen iterations, whatever lambda is."""
COARSE = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
"""Exponents of lambda that are tried first. scikit-learn's C is 1 / lambda, and applies to the sum of the losses."""
FIRST_STEP, LAST_STEP = 1.0, 1 / 8


@dataclass(frozen=True)
class Weights:
    """A fitted probe: the probability of the positive label is sigmoid(x . weight + bias)."""

    weight: Doubles
    """[dim]."""
    bias: float
    has_converged: bool

    def logits(self, vectors: Doubles) -> Doubles:
        """The logits [n] of vectors [n, dim]."""
        found: Doubles = vectors @ self.weight + self.bias
        return found


@dataclass(frozen=True)
class Probe:
    """A probe trained on all examples, and the out-of-fold predictions for these examples."""

    weights: Weights
    exponent: float
    """Exponent of lambda."""
    losses: dict[float, float]
    """Exponent of lambda -> mean log loss of the out-of-fold predictions, for each exponent that was tried."""
    logits: Doubles
    """Out-of-fold logits [n], each from a probe that neither saw the example nor used it to choose lambda."""
    folds: Folds
    """Fold of each example [n]."""

    @property
    def probabilities(self) -> Doubles:
        """Out-of-fold probabilities [n]. Above a logit of 37, all are 1, so sort by the logits."""
        return sigmoid(self.logits)

    @property
    def c(self) -> float:
        """scikit-learn's C."""
        return float(10.0**-self.exponent)


def train(vectors: Doubles, is_positive: Booleans, folds: Folds, on_step: OnStep = ignore_step) -> Probe:
    """Train on unit vectors [n, dim]. Deterministic.

    The predictions come from nested cross-validation: for each fold, only the other folds are used to choose lambda.
    Everything runs in one thread: with so little data, several threads are slower, and 15 times slower on a busy
    machine.
    """
    with threadpool_limits(1):
        return _train(vectors, is_positive, folds, on_step)


def _train(vectors: Doubles, is_positive: Booleans, folds: Folds, on_step: OnStep) -> Probe:
    steps = _Steps(on_step, FOLDS + 1)
    outside = np.empty(len(vectors))
    for fold in range(FOLDS):
        is_in, is_out = folds == fold, folds != fold
        steps.part()
        exponent, _ = _choose(vectors[is_out], is_positive[is_out], folds[is_out])
        outside[is_in] = fit(vectors[is_out], is_positive[is_out], exponent).logits(vectors[is_in])
    steps.part()
    exponent, losses = _choose(vectors, is_positive, folds)
    return Probe(fit(vectors, is_positive, exponent), exponent, losses, outside, folds)


def fit(vectors: Doubles, is_positive: Booleans, exponent: float) -> Weights:
    """Fit a logistic regression with lambda = 10 ** exponent."""
    model = LogisticRegression(C=10.0**-exponent, solver="lbfgs", max_iter=MAX_ITERATIONS, tol=TOLERANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # separable examples with a tiny lambda never converge
        model.fit(vectors, is_positive)
    return Weights(model.coef_[0], float(model.intercept_[0]), int(model.n_iter_[0]) < MAX_ITERATIONS)


def folds_of(hashes: U64, is_positive: Booleans, names: tuple[str, str] = ("positive", "negative")) -> Folds:
    """The fold of each example [n], by the hash of its uid. All folds have equal shares of both labels.

    `names`: names of the labels, for messages. Raises EvaluateError if there are too few examples of a label.
    """
    folds = np.empty(len(hashes), np.int64)
    for label, name in zip((True, False), names, strict=True):
        members = np.flatnonzero(is_positive == label)
        if len(members) < FOLDS:
            raise EvaluateError(
                f"only {counted(len(members), 'example')} of {name}; label at least {FOLDS}, preferably 50 or more"
            )
        folds[members[np.argsort(hashes[members], kind="stable")]] = np.arange(len(members)) % FOLDS
    return folds


def log_losses(logits: Doubles, is_positive: Booleans) -> Doubles:
    """The log loss of each example [n]: -ln of the probability of its true label."""
    losses: Doubles = np.logaddexp(0, np.where(is_positive, -logits, logits))
    return losses


def sigmoid(logits: Doubles) -> Doubles:
    """The logistic function of each logit [n], without overflow."""
    found: Doubles = np.exp(-np.logaddexp(0, -logits))
    return found


def search(loss: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """(the exponent with the lowest loss, the loss of each exponent tried). Ties go to the strongest penalty."""
    tried = {exponent: loss(exponent) for exponent in COARSE}
    step = FIRST_STEP
    while step >= LAST_STEP:
        best = _best(tried)
        for exponent in (best - step, best + step):
            if COARSE[0] <= exponent <= COARSE[-1] and exponent not in tried:
                tried[exponent] = loss(exponent)
        step /= 2
    return _best(tried), tried


def _best(tried: dict[float, float]) -> float:
    return min(tried, key=lambda exponent: (tried[exponent], -exponent))


def _choose(vectors: Doubles, is_positive: Booleans, folds: Folds) -> tuple[float, dict[float, float]]:
    """`search` for the exponent with the lowest mean log loss of the out-of-fold predictions."""

    def loss(exponent: float) -> float:
        logits = np.empty(len(vectors))
        for fold in np.unique(folds):
            is_in, is_out = folds == fold, folds != fold
            logits[is_in] = fit(vectors[is_out], is_positive[is_out], exponent).logits(vectors[is_in])
        return float(log_losses(logits, is_positive).mean())

    return search(loss)


@dataclass
class _Steps:
    on_step: OnStep
    total: int
    done: int = field(default=0)

    def part(self) -> None:
        self.on_step("training", self.done, self.total)
        self.done += 1
