"""Loads presets: filters that others have published, as files in `presets/`.

A preset has rules for `build`, or steps for `select` and the scores that they need.
"""

from importlib import resources

from pydantic import ValidationError

from pairmill.jobs.preset_scores import PresetScores
from pairmill.jobs.yaml_loader import load_yaml
from pairmill.pipeline.columns.added_columns import AddedColumns, added_columns
from pairmill.pipeline.columns.added_model import read_card
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.manifests import committed
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.errors import JobError
from pairmill.schemas.preset import Preset

_SIMILARITY = "{similarity}"
"""In a step: the similarity of the model that the preset was calibrated on, or else of the first model."""


def preset_names() -> list[str]:
    """The names of all presets."""
    files = resources.files("pairmill.jobs").joinpath("presets").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The text of a preset's file. Raises JobError if there is no such preset."""
    if name not in preset_names():
        raise JobError(f"there is no preset {name!r}; choose one of: {', '.join(preset_names())}")
    return resources.files("pairmill.jobs").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8")


def load_preset(name: str) -> Preset:
    """The preset with this name. Raises JobError if there is none."""
    try:
        return Preset.model_validate(load_yaml(preset_text(name)))
    except ValidationError as error:
        raise JobError(f"the preset {name!r} is damaged: reinstall pairmill ({error})") from None


def score_of(name: str, score_name: str | None) -> dict[str, object]:
    """One score of a preset, as fields of a ScoreJob. Raises JobError."""
    preset = load_preset(name)
    if not preset.scores:
        raise JobError(f"the preset {name!r} has no scores; `pairmill presets` shows which commands take it")
    if score_name is None:
        raise JobError(f"say which score of the preset {name!r} to add: {', '.join(preset.scores)}")
    if score_name not in preset.scores:
        raise JobError(f"the preset {name!r} has no score {score_name!r}; it has: {', '.join(preset.scores)}")
    return dict(preset.scores[score_name])


def steps_for(name: str, store: Store) -> list[dict[str, object]]:
    """The steps of a preset for this dataset. Raises JobError if the dataset lacks the model or a score, or has another
    score of that name."""
    preset = load_preset(name)
    if not preset.steps:
        raise JobError(f"the preset {name!r} has no steps for select, only rules for build")
    store.check_access()
    added = added_columns(store, committed(store))
    models = _models(name, preset, store, added)
    PresetScores(name, preset, store, added, models).check()
    similarity = "similarity" if preset.requires_model is None else f"similarity_{models[0]}"
    return [_filled_in(step, similarity) for step in preset.steps]


def _models(name: str, preset: Preset, store: Store, added: AddedColumns) -> list[str]:
    """Aliases of the dataset's models, first the one that the preset requires. Raises JobError if that is missing."""
    models = [*load_plan(store).job.models, *(read_card(store, each) for each in added.models)]
    aliases, required = [model.alias for model in models], preset.requires_model
    if required is None:
        return aliases
    if found := required.among(models):
        first = found[0].alias
        return [first, *(alias for alias in aliases if alias != first)]
    wanted = f"{required.name}:{required.pretrained}"
    raise JobError(
        f"the preset {name!r} was calibrated on {wanted}, which {store.root} lacks; add it first:\n"
        f"  {pairmill_command('embed', store.root, '--add-model', wanted)}"
    )


def _filled_in(step: dict[str, object], similarity: str) -> dict[str, object]:
    """The step with the name of the column in place of {similarity}."""

    def fill(value: object) -> object:
        if isinstance(value, dict):
            return {key: fill(inner) for key, inner in value.items()}
        return value.replace(_SIMILARITY, similarity) if isinstance(value, str) else value

    return {key: fill(value) for key, value in step.items()}
