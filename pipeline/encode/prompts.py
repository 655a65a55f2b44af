"""The class names and prompt templates that open_clip ships."""

from collections.abc import Sequence

IMAGENET = "imagenet"
"""The name that stands for the 1,000 classes of ImageNet, as cleaned up by OpenAI."""

TEMPLATES = ("openai-80", "simple")
"""OpenAI's 80 prompt templates for ImageNet, and the seven that perform nearly as well
(https://github.com/openai/CLIP/blob/main/notebooks/Prompt_Engineering_for_ImageNet.ipynb)."""


def imagenet_classes() -> Sequence[str]:
    """The names of ImageNet's classes, in the order of their labels."""
    import open_clip

    return [str(name) for name in open_clip.IMAGENET_CLASSNAMES]


def filled_in(templates: str, name: str) -> list[str]:
    """The prompts for a class, made with one of TEMPLATES."""
    import open_clip

    known = {"openai-80": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES}
    return [str(template(name)) for template in known[templates]]
