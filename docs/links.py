"""Checks the links of the Markdown files outside of docs/; Zensical checks those of the pages. Part of `make docs`."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CHECKED = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pipeline/encode/tiny/README.md")

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)
_CODE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Print a line for each broken link; the exit status is 1 if there is one."""
    broken = [line for name in CHECKED for line in broken_links(ROOT / name)]
    for line in broken:
        print(line, file=sys.stderr)
    sys.exit(bool(broken))


def is_external(target: str) -> bool:
    """Whether a link leads to another site."""
    return re.match(r"[a-z]+:", target) is not None


def broken_links(source: Path) -> Iterator[str]:
    """One line for each link in a Markdown file to a file or heading that is not there."""
    shown = source.relative_to(ROOT) if source.is_relative_to(ROOT) else source.name
    text = _CODE.sub(lambda match: "\n" * match.group().count("\n"), source.read_text())
    for number, line in enumerate(text.splitlines(), 1):
        for match in LINK.finditer(re.sub("`[^`]*`", "", line)):
            target = match["target"]
            if is_external(target):
                continue
            path, _, anchor = target.partition("#")
            file = source.parent / path if path else source
            if not file.exists():
                yield f"{shown}:{number}: {target}: there is no such file"
            elif anchor and anchor not in set(map(slug, _HEADING.findall(_CODE.sub("", file.read_text())))):
                yield f"{shown}:{number}: {target}: there is no such heading"


def slug(heading: str) -> str:
    """The anchor of a heading, as Python-Markdown makes it."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


if __name__ == "__main__":
    main()
