"""Defines the files in `jobs/presets/`."""

from pairmill.schemas.settings import Settings


class PresetModel(Settings):
    """The model that a preset's thresholds were calibrated on."""

    name: str
    pretrained: str


class Preset(Settings):
    """A filter that others have published, with its source."""

    description: str
    """What it keeps."""
    source: str
    """Where it was published."""
    calibrated_on: str
    """The data and the models on which its thresholds were chosen."""
    requires_model: PresetModel | None = None
    """Its thresholds mean nothing for another model. None: it has no such threshold."""
    rules: dict[str, object] = {}
    """Rules for `build --preset`."""
    scores: dict[str, dict[str, dict[str, object]]] = {}
    """Name -> score, for `score OUT NAME --preset`. What is missing must be set, such as the targets of NormSim."""
    may_differ: list[str] = []
    """Dotted settings of scores that may differ where it selects, because they change effort, not meaning."""
    steps: list[dict[str, object]] = []
    """Steps for `select --preset`."""

    @property
    def commands(self) -> list[str]:
        """The commands that take it."""
        uses = {"build": self.rules, "score": self.scores, "select": self.steps}
        return [name for name, used in uses.items() if used]
