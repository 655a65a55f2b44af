"""Tests that preset files use only existing settings and agree with the papers that they come from."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from pairmill.pipeline.rules import SourceRules, apply_rules, check_rules
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.status import Step

FOLDER = Path(__file__).parents[3] / "jobs" / "presets"
NAMES = get_args(SourceRules.model_fields["preset"].annotation)
ENGLISH = {"caption_clean": "a small brown dog on the green sofa"}


def rules_of(name: str) -> SourceRules:
    preset = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return SourceRules.model_validate(preset["rules"])


def test_every_rule_preset_has_a_file_and_every_file_with_rules_is_a_preset() -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yaml")}
    assert {name for name, preset in files.items() if "rules" in preset} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_a_description_and_passes_the_checks(name: str) -> None:
    preset = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert set(preset) <= {"description", "source", "calibrated_on", "requires_model", "rules"}
    assert preset["description"] and preset["source"]
    assert "preset" not in preset["rules"]
    check_rules(rules_of(name))
    if "requires_model" in preset:
        ModelConfig.model_validate(preset["requires_model"])


def test_the_default_preset_filters_nothing() -> None:
    assert rules_of("none") == SourceRules()


@pytest.mark.parametrize(
    ("step", "row", "status"),
    [
        (Step.CAPTION, {"caption_clean": "the dog sleeps"}, "ok"),
        (Step.CAPTION, {"caption_clean": "the dog"}, "caption_too_few_words"),
        (Step.CAPTION, {"caption_clean": "I a b"}, "caption_too_short"),
        (Step.CAPTION, {"caption_clean": "ein brauner Hund auf dem Sofa"}, "caption_language"),
        (Step.IMAGE, {"original_width": 600, "original_height": 200}, "ok"),
        (Step.IMAGE, {"original_width": 601, "original_height": 200}, "image_aspect"),
        (Step.IMAGE, {"original_width": 199, "original_height": 200}, "image_too_small"),
    ],
)
def test_datacomp_basic_agrees_with_the_paper(in_flight: Any, step: Step, row: dict[str, object], status: str) -> None:
    assert apply_rules(in_flight([ENGLISH | row]), step, rules_of("datacomp-basic"))["status"].to_pylist() == [status]


@pytest.mark.parametrize(
    ("step", "row", "status"),
    [
        (Step.CAPTION, {}, "ok"),
        (Step.CAPTION, {"caption_clean": "dogs"}, "caption_too_short"),
        (Step.IMAGE, {"original_bytes": 4999}, "image_bytes"),
        (Step.SCORE, {"similarity_tiny": 0.28}, "ok"),
        (Step.SCORE, {"similarity_tiny": 0.2799}, "low_similarity"),
    ],
)
def test_laion2b_agrees_with_the_paper(in_flight: Any, step: Step, row: dict[str, object], status: str) -> None:
    assert apply_rules(in_flight([ENGLISH | row]), step, rules_of("laion2b"))["status"].to_pylist() == [status]
