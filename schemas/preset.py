"""Defines the schema of the files in `jobs/presets/`."""

from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.settings import Settings


class PresetModel(Settings):
    """The model for which a preset's thresholds were calibrated."""

    name: str
    pretrained: str

    def is_same(self, model: ModelConfig) -> bool:
        """Whether a job's model is this one. Both names of an architecture mean the same, because weights run with the
        activation that their tag names."""
        return model.name.removesuffix("-quickgelu") == self.name and model.pretrained == self.pretrained


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
