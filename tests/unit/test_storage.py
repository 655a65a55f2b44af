import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pairmill.pipeline.common import storage
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.files import Files, NotAFileError, absolute, is_inside
from pairmill.pipeline.common.storage import StorageError, Store
from pairmill.schemas.errors import FailureKind


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def test_create_writes_once_and_never_overwrites(store: Store) -> None:
    assert store.create("manifests/1.json", b"first")
    assert not store.create("manifests/1.json", b"second")
    assert store.read("manifests/1.json") == b"first"


def test_exactly_one_of_many_writers_of_a_name_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.create("a/b", str(n).encode()), range(64)))
    assert won.count(True) == 1
    assert store.read("a/b") == str(won.index(True)).encode()


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.read("a/b"),
        lambda store: store.checksum("a/b"),
        lambda store: store.open_arrow("a/b"),
        lambda store: store.files.read_range(store.path("a/b"), 0, 1),
        lambda store: store.create("a/b", b""),
        lambda store: store.replace("a/b", b""),
    ],
)
def test_a_folder_in_place_of_a_file_is_named_with_a_remedy(store: Store, use: Callable[[Store], object]) -> None:
    Path(store.path("a/b")).mkdir(parents=True)
    with pytest.raises(NotAFileError, match=f"^{store.path('a/b')} is a folder, but should be a file; move it"):
        use(store)


def test_no_temporary_files_are_left_behind(store: Store) -> None:
    store.create("a/b", b"x")
    store.create("a/b", b"y")
    store.replace("c", b"z")
    assert store.list("tmp") == []
    store.remove_temporary()
    assert sorted(path.name for path in Path(store.root).iterdir()) == ["a", "c"]


def test_only_temporary_files_of_dead_processes_are_deleted_or_after_an_interruption_also_its_own(store: Store) -> None:
    folder = Path(store.root, "tmp")
    folder.mkdir(parents=True)
    host = os.uname().nodename
    for name in (f"{host}!{2**22 + 1}!x", f"{host}!{os.getpid()}!x", "elsewhere!1!x"):
        (folder / name).touch()
    store.remove_temporary()
    assert store.list("tmp") == sorted([f"{host}!{os.getpid()}!x", "elsewhere!1!x"])
    store.remove_temporary(own=True)
    assert store.list("tmp") == ["elsewhere!1!x"]


def test_file_permissions_follow_the_umask(store: Store) -> None:
    store.create("a", b"")
    assert Path(store.root, "a").stat().st_mode & 0o777 == 0o666 & ~storage._umask()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_names_outside_the_folder_are_refused(store: Store, name: str) -> None:
    with pytest.raises(StorageError, match="is outside"):
        store.create(name, b"")


def test_replace_overwrites_and_delete_ignores_missing_files(store: Store) -> None:
    store.replace("x", b"1")
    store.replace("x", b"2")
    assert store.read("x") == b"2"
    store.delete("x")
    store.delete("x")
    assert not store.exists("x")


def test_a_fingerprint_depends_on_the_content_and_not_on_timestamps(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one")
    before = Files().fingerprint(str(path))
    os.utime(path, (1, 1))
    assert Files().fingerprint(str(path)) == before
    path.write_bytes(b"two")
    assert Files().fingerprint(str(path)) != before


@pytest.mark.parametrize(
    ("http_status", "outcome"), [(412, False), (409, OSError), (403, OSError), (None, OSError), (200, True)]
)
def test_a_taken_name_is_recognized_by_the_response_status(
    monkeypatch: pytest.MonkeyPatch, http_status: int | None, outcome: bool | type[OSError]
) -> None:
    """The wording of the 412 error varies between S3-compatible servers."""
    tries = 0

    class S3:
        def put_file(self, local_path: str, path: str, mode: str) -> None:
            nonlocal tries
            tries += 1
            if http_status == 200:
                return
            cause = Exception("PreconditionFailed")
            cause.response = {"ResponseMetadata": {"HTTPStatusCode": http_status}}  # type: ignore[attr-defined]
            raise OSError(22, "At least one of the pre-conditions") from cause

    monkeypatch.setattr(Store, "fs", S3())
    monkeypatch.setattr(storage, "_CONFLICT_WAIT_S", 0.0)
    store = Store("s3://mill/out")
    if isinstance(outcome, bool):
        assert store.create("x", b"1") is outcome
    else:
        with pytest.raises(outcome):
            store.create("x", b"1")
    assert tries == (5 if http_status == 409 else 1)


def test_an_output_without_atomic_commits_is_refused() -> None:
    with pytest.raises(StorageError, match="a local folder or s3://"):
        Store("gs://bucket/out")


def test_an_unwritable_folder_raises_an_error_with_its_name_and_a_remedy() -> None:
    """No user, not even root, can create a folder in /sys."""
    for write in (Store("/sys/pairmill").create, Store("/sys/pairmill").replace):
        with pytest.raises(StorageError, match=r"^/sys/pairmill/tmp: cannot be written to \(.*\); use another output"):
            write("a", b"x")


@pytest.mark.parametrize(
    "spelling",
    ["out", "out/", "./out", "out/../out", ".//out/.", "deep/../out", "{cwd}/out", "file://{cwd}/out/", "~/out"],
)
def test_every_spelling_of_a_path_is_the_same_path(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store(spelling.format(cwd=tmp_path)).root == str(tmp_path / "out")


@pytest.mark.parametrize("name", ["./~", "~x", "a/~", "~~"])
def test_only_a_leading_tilde_alone_is_the_home_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(name) == str(tmp_path / name)


def test_the_parent_of_a_linked_folder_is_that_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere/deep")
    assert absolute(str(tmp_path / "link/../out")) == str(tmp_path / "elsewhere/out")
    assert absolute(str(tmp_path / "link/out")) == str(tmp_path / "link/out")


def test_urls_lose_only_a_trailing_slash() -> None:
    assert absolute("s3://bucket/a/../b/") == "s3://bucket/a/../b"
    assert absolute("https://example.com/list/") == "https://example.com/list/"


def test_an_output_inside_its_input_is_recognized_in_either_spelling_of_s3() -> None:
    assert is_inside("s3://b/data/out/pairs/0.parquet", "s3a://b/data/out/")
    assert is_inside("/data/out/pairs/0.parquet", "/data/out")
    assert not is_inside("s3://b/data/output/0.parquet", "s3a://b/data/out")


@pytest.mark.parametrize("name", [b"\xff", b"caf\xe9", b"a\xed\xa0\x80"])
def test_an_output_whose_name_is_not_utf8_is_refused_before_anything_is_written(tmp_path: Path, name: bytes) -> None:
    """Python represents such names with lone surrogates (PEP 383, click#35), which Arrow and JSON cannot store."""
    root = f"{tmp_path}/{os.fsdecode(name)}/out"
    with pytest.raises(StorageError, match="the name is not UTF-8; rename it") as raised:
        Store(root)
    assert str(raised.value).encode().isascii()
    assert list(tmp_path.iterdir()) == []


def test_a_relative_output_in_a_folder_whose_name_is_not_utf8_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    os.mkdir(folder)  # noqa: PTH102
    monkeypatch.chdir(folder)
    with pytest.raises(StorageError, match=r"/caf\?/out: the name is not UTF-8; rename it"):
        Store("out")
    assert os.listdir(folder) == []  # noqa: PTH208


@pytest.mark.parametrize("code", ["EPERM", "EACCES", "EROFS", "EOPNOTSUPP", "ENOTSUP", "ENOSYS", "EXDEV"])
def test_a_file_system_that_refuses_to_publish_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """FAT refuses hard links with EPERM, CIFS with EOPNOTSUPP (ansible#76351), FUSE with ENOSYS (multipass#144)."""

    def no_links(*_: object) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(os, "link", no_links)
    store = Store(str(tmp_path))
    for write in (store.create, store.replace):
        with pytest.raises(StorageError, match=r"pairs/0.parquet: cannot be created \(.+hard links") as raised:
            write("pairs/0.parquet", b"x")
        assert Failure.of(raised.value).kind is FailureKind.STORAGE
