"""Loads presets: filters that others have published, as files in `presets/`.

A preset has rules for `build`, or steps for `select` and the scores that they need.
"""

from importlib import resources

from pydantic import ValidationError

from pairmill.jobs.yaml_loader import load_yaml
from pairmill.pipeline.columns.added_columns import added_columns
from pairmill.pipeline.columns.added_model import read_card
from pairmill.pipeline.common.storage import Store
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
        raise JobError(f"there is no preset {name!r}; there are: {', '.join(preset_names())}")
    return resources.files("pairmill.jobs").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8")


def load_preset(name: str) -> Preset:
    """The preset with this name. Raises JobError if there is none."""
    try:
        return Preset.model_validate(load_yaml(preset_text(name)))
    except ValidationError as error:
        raise JobError(f"the preset {name!r} is damaged: reinstall pairmill ({error})") from None


def score_of(name: str, score_name: str) -> dict[str, object]:
    """One score of a preset, as fields of a ScoreJob. Raises JobError."""
    preset = load_preset(name)
    if score_name not in preset.scores:
        if not preset.scores:
            raise JobError(f"the preset {name!r} has no scores; `pairmill presets` says which commands take it")
        raise JobError(f"the preset {name!r} has no score {score_name!r}; it has: {', '.join(preset.scores)}")
    return dict(preset.scores[score_name])


def steps_for(name: str, store: Store) -> list[dict[str, object]]:
    """The steps of a preset for this dataset. Raises JobError if the dataset lacks the model or a score."""
    preset = load_preset(name)
    if not preset.steps:
        raise JobError(f"the preset {name!r} has no steps for select, only rules for build")
    store.check_access()
    added = added_columns(store, committed(store))
    if missing := [each for each in preset.scores if each not in added.names]:
        commands = "\n".join(f"  pairmill score {store.root} {each} --preset {name}" for each in missing)
        raise JobError(f"the preset {name!r} selects by scores that {store.root} lacks; add them first:\n{commands}")
    similarity = _similarity(name, preset, store)
    return [_filled_in(step, similarity) for step in preset.steps]


def _similarity(name: str, preset: Preset, store: Store) -> str:
    """The column of the similarity that a preset's steps mean."""
    if preset.requires_model is None:
        return "similarity"
    models = [*load_plan(store).job.models, *(read_card(store, each) for each in _added_models(store))]
    for model in models:
        if (model.name, model.pretrained) == (preset.requires_model.name, preset.requires_model.pretrained):
            return f"similarity_{model.alias}"
    wanted = f"{preset.requires_model.name}:{preset.requires_model.pretrained}"
    raise JobError(
        f"the preset {name!r} was calibrated on {wanted}, which {store.root} lacks; add it first:\n"
        f"  pairmill embed {store.root} --add-model {wanted}"
    )


def _added_models(store: Store) -> tuple[str, ...]:
    return added_columns(store, committed(store)).models


def _filled_in(step: dict[str, object], similarity: str) -> dict[str, object]:
    """The step with the name of the column in place of {similarity}."""

    def fill(value: object) -> object:
        if isinstance(value, dict):
            return {key: fill(inner) for key, inner in value.items()}
        return value.replace(_SIMILARITY, similarity) if isinstance(value, str) else value

    return {key: fill(value) for key, value in step.items()}
