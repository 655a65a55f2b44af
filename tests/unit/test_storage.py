import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pairmill.pipeline.common import storage
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import StorageError, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def test_create_writes_once_and_never_overwrites(store: Store) -> None:
    assert store.create("manifests/1.json", b"first")
    assert not store.create("manifests/1.json", b"second")
    assert store.read("manifests/1.json") == b"first"


def test_of_many_writers_of_one_name_exactly_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.create("a/b", str(n).encode()), range(64)))
    assert won.count(True) == 1
    assert store.read("a/b") == str(won.index(True)).encode()


def test_nothing_temporary_is_left_behind(store: Store) -> None:
    store.create("a/b", b"x")
    store.create("a/b", b"y")
    store.replace("c", b"z")
    assert store.list("tmp") == []
    store.remove_temporary()
    assert sorted(path.name for path in Path(store.root).iterdir()) == ["a", "c"]


def test_temporary_files_of_dead_processes_go_and_those_of_living_ones_stay(store: Store) -> None:
    folder = Path(store.root, "tmp")
    folder.mkdir(parents=True)
    host = os.uname().nodename
    for name in (f"{host}!{2**22 + 1}!x", f"{host}!{os.getpid()}!x", "elsewhere!1!x"):
        (folder / name).touch()
    store.remove_temporary()
    assert store.list("tmp") == sorted([f"{host}!{os.getpid()}!x", "elsewhere!1!x"])


def test_files_are_readable_by_others_as_the_umask_says(store: Store) -> None:
    store.create("a", b"")
    assert Path(store.root, "a").stat().st_mode & 0o777 == 0o666 & ~storage._umask()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_names_cannot_lead_out_of_the_folder(store: Store, name: str) -> None:
    with pytest.raises(StorageError, match="is outside"):
        store.create(name, b"")


def test_replace_overwrites_and_delete_forgives(store: Store) -> None:
    store.replace("x", b"1")
    store.replace("x", b"2")
    assert store.read("x") == b"2"
    store.delete("x")
    store.delete("x")
    assert not store.exists("x")


def test_a_fingerprint_changes_with_the_content_and_not_with_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one")
    before = Files().fingerprint(str(path))
    os.utime(path, (1, 1))
    assert Files().fingerprint(str(path)) == before
    path.write_bytes(b"two")
    assert Files().fingerprint(str(path)) != before


def test_a_folder_stands_for_its_visible_inputs_at_any_depth(tmp_path: Path) -> None:
    for name in ("b.csv", "a/c.parquet", ".hidden.csv", "_SUCCESS.csv", "_temporary/x.csv", "notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = Files().expand(str(tmp_path), (".csv", ".parquet"))
    assert [str(Path(name).relative_to(tmp_path)) for name in found] == ["a/c.parquet", "b.csv"]
    assert Files().expand(f"{tmp_path}/*.csv", (".csv",)) == [str(tmp_path / "_SUCCESS.csv"), str(tmp_path / "b.csv")]


def test_a_source_that_matches_nothing_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        Files().expand(str(tmp_path / "nowhere.csv"), (".csv",))


@pytest.mark.parametrize(
    ("http_status", "outcome"), [(412, False), (409, OSError), (403, OSError), (None, OSError), (200, True)]
)
def test_a_name_that_is_taken_is_known_by_the_status_of_the_answer(
    monkeypatch: pytest.MonkeyPatch, http_status: int | None, outcome: bool | type[OSError]
) -> None:
    """Stores that speak S3 say 412 in words of their own."""
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


def test_an_output_where_a_commit_is_not_atomic_is_refused() -> None:
    with pytest.raises(StorageError, match="a local folder or s3://"):
        Store("gs://bucket/out")


def test_a_folder_that_nobody_may_write_to_is_one_error_that_names_it_and_says_what_to_give() -> None:
    """The kernel lets no user, not even root, make a folder in /sys."""
    for write in (Store("/sys/pairmill").create, Store("/sys/pairmill").replace):
        with pytest.raises(StorageError, match=r"^/sys/pairmill/tmp: cannot be written to \(.*\); give another output"):
            write("a", b"x")
