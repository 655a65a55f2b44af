"""Lists the files at a path and, separately, the entries that are passed over, with the reason for each. Follows
symlinks to folders.

Only names that begin with a dot are hidden. The folders in which Spark and Delta Lake keep logs and unfinished files
are passed over too, because their Parquet files are not part of the table.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pairmill.pipeline.common.files import GLOB_CHARACTERS, Files, absolute, is_inside, is_remote, why_no_file
from pairmill.pipeline.common.web_files import naming_web_errors
from pairmill.schemas.passed_over import PassedOver

TABLE_LOGS = frozenset({"_delta_log", "_change_data", "_delta_index", "_spark_metadata", "_temporary"})
"""Folders that Spark and Delta Lake put beside the files of a table. Some contain Parquet files, but no rows of it."""

MAX_VISITS = 16
"""Maximum number of times that a folder is listed. Symlinks can give a folder several names, and symlinks inside the
folder multiply that number."""

_FolderId = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """A direct entry of a folder that is not itself a folder."""

    name: str
    size: int
    """Size in bytes; for a symlink, the size of its target."""
    passed_over: PassedOver | None = None


@dataclass(slots=True)
class Listing:
    """The files at a path, and the entries that are passed over."""

    files: list[str] = field(default_factory=list)
    """Absolute paths or URLs, sorted."""
    named: list[str] = field(default_factory=list)
    """The files that the path itself names or its glob matches. All other files are in folders."""
    passed_over: dict[str, PassedOver] = field(default_factory=dict)
    """Absolute path or URL -> why it is passed over. Folders end in `/`; nothing below them was listed."""

    def pass_over(self, uris: Iterable[str], reason: PassedOver) -> None:
        """Record that these files are passed over."""
        self.passed_over.update(dict.fromkeys(uris, reason))


def list_path(path: str, files: Files, exclude: str | None = None) -> Listing:
    """The files to which a source path refers: a single file, the matches of a glob, or all files below a folder.

    As in a shell, the wildcards of a glob match neither hidden files nor hidden folders. They do not match the logs of
    tables either. Folders that match a glob are listed like any other. `exclude`: the output folder, which is not
    listed. Raises FileNotFoundError if nothing exists at the path.
    """
    path = absolute(path)
    fs, inside = files.file_system(path)
    with naming_web_errors(path):
        if fs.isfile(inside) or fs.isdir(inside):
            roots: dict[str, PassedOver | None] = {inside: None}
        else:
            matches = sorted(files.glob(path)) if GLOB_CHARACTERS & set(inside) else []
            roots = {name: _hides_match(name, inside) for name in matches}
    if all(roots.values()):
        why = why_no_file(path)
        raise FileNotFoundError(f"{path} {why}" if why else f"no input found at {path}")
    found = Listing()
    for root, reason in roots.items():
        uri = str(fs.unstrip_protocol(root)) if is_remote(path) else str(root)
        if exclude is not None and is_inside(uri, exclude):
            found.passed_over[uri] = PassedOver.OUTPUT
        elif reason is not None:
            found.passed_over[uri if fs.isfile(root) else f"{uri.rstrip('/')}/"] = reason
        elif fs.isfile(root):
            found.files.append(uri)
            found.named.append(uri)
        elif is_remote(path):
            _list_remote(fs, root, exclude, found)
        else:
            _list_local(uri, exclude, found)
    found.files = sorted({*found.files})  # `**` matches a folder and also the files in it
    if not found.files and not found.passed_over:
        raise FileNotFoundError(f"no input found at {path}")
    return found


def entries_in(folder: str, files: Files) -> Iterator[Entry]:
    """The direct entries of a folder, excluding folders, in no particular order."""
    if is_remote(folder):
        yield from _remote_entries(folder, files)
        return
    with os.scandir(absolute(folder)) as found:
        yield from (_entry(each) for each in found if not _is_folder(each))


def _remote_entries(folder: str, files: Files) -> Iterator[Entry]:
    """The result of `entries_in` for a folder on S3. In S3 keys, unlike in paths, `a/` and `a//` are two folders, but
    s3fs lists `a/` for both (s3fs#770). So for a folder with an empty name, list everything below its parent and select
    its entries."""
    fs, inside = files.file_system(folder)
    prefix = inside + (folder[len(folder.rstrip("/")) :] or "/")
    if prefix.endswith("//"):
        listed = [info for name, info in fs.find(inside, detail=True).items() if name.rpartition("/")[0] == prefix[:-1]]
    else:
        listed = fs.ls(inside, detail=True)
    for info in listed:
        if info["type"] == "file" and not _is_folder_marker(info, inside):
            name = str(info["name"]).rpartition("/")[2]
            yield Entry(name, int(info["size"]), PassedOver.HIDDEN if name.startswith(".") else None)


def _is_folder(found: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a symlink to one. Python raises an error for symlinks that loop or whose path
    leads through a file."""
    try:
        return found.is_dir()
    except OSError:
        return False


def _entry(found: os.DirEntry[str]) -> Entry:
    if found.name.startswith("."):
        return Entry(found.name, 0, PassedOver.HIDDEN)
    try:
        info = found.stat()
    except OSError:  # a broken symlink, a loop, or a path that leads through a file
        return Entry(found.name, 0, PassedOver.BROKEN_LINK)
    return Entry(found.name, info.st_size, None if stat.S_ISREG(info.st_mode) else PassedOver.SPECIAL)


def _list_remote(fs: Any, root: str, exclude: str | None, found: Listing) -> None:
    for name, info in fs.find(root, detail=True).items():
        uri = str(fs.unstrip_protocol(name))
        if _is_folder_marker(info, root):
            if info["size"]:  # an object with content, which is no folder marker
                found.passed_over[uri] = PassedOver.OTHER_KIND
            continue
        parts = PurePosixPath(str(name).removeprefix(root)).parts
        reason = next((each for part in parts if (each := _hides(part))), None)
        if exclude is not None and is_inside(uri, exclude):
            reason = PassedOver.OUTPUT
        if reason is None:
            found.files.append(uri)
        else:
            found.passed_over[uri] = reason


def _is_folder_marker(info: Any, folder: str) -> bool:
    """Whether an object is named like a folder. Such an object is usually empty and makes a folder appear in
    consoles."""
    return str(info["name"]).endswith("/") or str(info["name"]) == folder


def _hides(name: str) -> PassedOver | None:
    """Why files and folders with this name are passed over at any depth. None if they are used."""
    if name.startswith("."):
        return PassedOver.HIDDEN
    return PassedOver.TABLE_LOG if name in TABLE_LOGS else None


def _hides_match(name: str, pattern: str) -> PassedOver | None:
    """Why a match of a glob is passed over: a wildcard matched a name for which `_hides` returns a reason. None if it
    is used."""
    parts, spelled = PurePosixPath(name).parts, PurePosixPath(pattern).parts
    if "**" in spelled:  # it matches any number of folders
        before, after = spelled[: spelled.index("**")], spelled[len(spelled) - spelled[::-1].index("**") :]
        spelled = (*before, *["**"] * (len(parts) - len(before) - len(after)), *after)
    reasons = (_hides(part) for part, each in zip(parts, spelled, strict=False) if part[0] != each[0])
    return next(filter(None, reasons), None)


def _list_local(root: str, exclude: str | None, found: Listing) -> None:
    """Like `os.walk(root, followlinks=True)`, but does not loop."""
    output = _folder_id(exclude) if exclude is not None and not is_remote(exclude) else None
    visits: Counter[_FolderId] = Counter()
    root_id = _folder_id(root)
    if root_id is None:
        found.passed_over[f"{root.rstrip('/')}/"] = PassedOver.UNREADABLE
        return
    if root_id == output:
        found.passed_over[f"{root.rstrip('/')}/"] = PassedOver.OUTPUT
        return
    waiting: list[tuple[str, tuple[_FolderId, ...]]] = [(root, (root_id,))]  # folder, ids of its parents and its own
    while waiting:
        folder, above = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                # The order must always be the same, because it determines which names of a folder are listed.
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            found.passed_over[f"{folder}/"] = PassedOver.UNREADABLE
            continue
        for each in listed:
            path = os.path.join(folder, each.name)  # noqa: PTH118
            if not _is_folder(each):
                entry = _entry(each)
                if entry.passed_over is None:
                    found.files.append(path)
                else:
                    found.passed_over[path] = entry.passed_over
                continue
            identity = _folder_id(path)
            if reason := _refusal(each.name, identity, above, output, visits):
                found.passed_over[f"{path}/"] = reason
            elif identity is not None:
                visits[identity] += 1
                waiting.append((path, (*above, identity)))


def _refusal(
    name: str,
    identity: _FolderId | None,
    above: tuple[_FolderId, ...],
    output: _FolderId | None,
    visits: Counter[_FolderId],
) -> PassedOver | None:
    """Why a folder is not listed. None if it is listed."""
    if reason := _hides(name):
        return reason
    if identity is None:
        return PassedOver.UNREADABLE
    if identity == output:
        return PassedOver.OUTPUT
    if identity in above:
        return PassedOver.LOOP
    return PassedOver.MANY_LINKS if visits[identity] >= MAX_VISITS else None


def _folder_id(path: str) -> _FolderId | None:
    """Device and inode, which are the same for all names of a folder. None if the folder does not exist."""
    try:
        info = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return info.st_dev, info.st_ino
