"""Loads YAML as people write it in job files and after `--set`.

Words and numbers mean what they mean in YAML 1.2 (https://yaml.org/spec/1.2.2/, "Core Schema") and JSON: `no` is a word
(a resize mode, or Norwegian), and so are `on`, `12:30:00` and `2026-01-01`. Underscores may group digits. Duplicate
keys are errors, because the first value would be silently lost. Characters that are line breaks in YAML 1.1 but not
in YAML 1.2 (section 5.4) are errors too, because PyYAML would end a comment there and read the rest of the line as
fields.

Aliases (`*name`) are limited by the size of what they stand for: nine lines of nine aliases each make a billion values,
which later steps would copy and print one by one (https://en.wikipedia.org/wiki/Billion_laughs_attack).
"""

import re
from typing import Any

import yaml

from pairmill.schemas.errors import JobError

MAX_YAML_BYTES = 1 << 20
_MAX_EXPANDED = 2 * MAX_YAML_BYTES
"""Maximum number of values and characters with every alias expanded. Text of MAX_YAML_BYTES without aliases never has
more."""
_TOO_MANY_ALIASES = f"aliases stand for more than {_MAX_EXPANDED:,} values and characters, or for themselves"

_CORE_SCHEMA = (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^(?:[-+]?[0-9][0-9_]*|0x[0-9a-fA-F_]+)$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
)
"""(tag, pattern, first characters) of YAML 1.2's core schema, except for `1e3`, which could be a part of a digest."""

_MAX_DIGITS = 1_000
"""Maximum digits of an integer. No field takes an integer of this length, and Python does not print one of more
than 4,300."""

_LINE = re.compile(r"\r\n?|\n")
_OLD_LINE_BREAK = re.compile("[\x85\u2028\u2029]")
"""Line breaks in YAML 1.1 alone. In double quotes they can be written as escapes, which mean the same in both."""

_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What PyYAML raises: its own errors, and those that its constructors do not catch, such as for `!!bool x`."""


class YamlError(JobError):
    """The text is not valid YAML; the message says why. `line` counts from 1; None if it is unknown."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


def load_yaml(text: str) -> Any:
    """The value of the only document, as plain Python types; None for empty text. Raises YamlError."""
    if found := _OLD_LINE_BREAK.search(text):
        name = f"U+{ord(found[0]):04X}"
        message = (
            f'{name} is an invisible line break, in YAML 1.1 only; remove it, or write "\\u{name[2:]}" in double quotes'
        )
        raise YamlError(message, 1 + len(_LINE.findall(text, 0, found.start())))
    try:
        return yaml.load(text, Loader=_Loader)
    except _ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        raise YamlError(str(getattr(error, "problem", error)), mark.line + 1 if mark else None) from None


def dump_yaml(value: object) -> str:
    """Text that `load_yaml` reads as the same value, of plain Python types, with keys in their order."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    if _OLD_LINE_BREAK.search(text):
        text = yaml.safe_dump(value, sort_keys=False)  # escapes everything that is not ASCII
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with the differences that the module's docstring describes."""

    def construct_document(self, node: yaml.Node) -> Any:
        _check_size(node)
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is not a name", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_size(root: yaml.Node) -> None:
    """Raises ConstructorError for a node that contains itself, or that is too large with its aliases expanded."""
    sizes: dict[int, int | None] = {}  # id of a node -> values and characters; None while it is counted

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = None
            sizes[id(node)] = 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else sum(map(size, _in(node))))
        found = sizes[id(node)]
        if found is None or found > _MAX_EXPANDED:
            raise yaml.constructor.ConstructorError(None, None, _TOO_MANY_ALIASES, node.start_mark)
        return found

    size(root)


def _in(node: yaml.Node) -> list[yaml.Node]:
    """The values of a sequence, or the keys and values of a mapping."""
    return [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value


def _use_core_schema() -> None:
    tags = {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}
    usual = yaml.SafeLoader.yaml_implicit_resolvers
    _Loader.yaml_implicit_resolvers = {
        first: [each for each in resolvers if each[0] in tags] for first, resolvers in usual.items()
    }
    for tag, pattern, firsts in _CORE_SCHEMA:
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(firsts))
    _Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """In YAML 1.2 a leading zero does not mean octal."""
    text = str(loader.construct_scalar(node)).replace("_", "")
    if len(text) > _MAX_DIGITS:
        raise yaml.constructor.ConstructorError(None, None, f"an integer of {len(text):,} digits", node.start_mark)
    return int(text, 16 if "x" in text else 10)


_use_core_schema()
