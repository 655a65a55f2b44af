"""Defines the schema of the files in `jobs/presets/`."""

from collections.abc import Sequence

from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.settings import Settings


class PresetModel(Settings):
    """The model for which a preset's thresholds were calibrated."""

    name: str
    pretrained: str

    def among(self, models: Sequence[ModelConfig]) -> list[ModelConfig]:
        """Those of the models that are this one: with exactly this name or, if there is none, with `-quickgelu` added.

        Since 0.2, both names run these weights with QuickGELU. In outputs from before 0.2, the exact name ran them with
        GELU; it still takes precedence, so that these outputs can be continued.
        """
        candidates = [model for model in models if model.pretrained == self.pretrained]
        exact = [model for model in candidates if model.name == self.name]
        return exact or [model for model in candidates if model.name == f"{self.name}-quickgelu"]


class Preset(Settings):
    """A published filter, with its source."""

    description: str
    """Which rows the preset keeps."""
    source: str
    """Where the filter was published."""
    calibrated_on: str
    """The data and the models on which the thresholds were chosen."""
    requires_model: PresetModel | None = None
    """The model whose similarities the thresholds apply to. None: no threshold depends on a model."""
    rules: dict[str, object] = {}
    """Rules for `build --preset`."""
    scores: dict[str, dict[str, dict[str, object]]] = {}
    """Name -> score, for `score OUT NAME --preset`. The user must set the settings that are missing here, such as the
    targets of NormSim."""
    may_differ: list[str] = []
    """Settings of scores, as KIND.SETTING, in which a dataset's score may differ from the preset when `select --preset`
    uses it, because they affect the cost and not the meaning."""
    steps: list[dict[str, object]] = []
    """Steps for `select --preset`."""

    @property
    def commands(self) -> list[str]:
        """The commands that accept the preset."""
        uses = {"build": self.rules, "score": self.scores, "select": self.steps}
        return [name for name, used in uses.items() if used]
