"""Tests that the plan covers every input row exactly once and grows only at its end."""

import io
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairmill.jobs.demo.demo import DATASET
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source import plan as plan_module
from pairmill.pipeline.source.describe import describe_plan
from pairmill.pipeline.source.files import SourceError
from pairmill.pipeline.source.plan import load_plan, make_plan
from pairmill.pipeline.source.planned import Plan, PlanError
from pairmill.pipeline.source.rows import ShardReader
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import PLAN_SCHEMA, shards_from_table
from pairmill.schemas.record import JobRecord


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path


def job(folder: Path, shard_rows: int = 4, limit: int | None = None, **more: object) -> BuildJob:
    source = {"paths": [str(folder / "in")], "limit_rows": limit}
    return BuildJob.model_validate({"source": source, "output": str(folder / "out"), "shard_rows": shard_rows, **more})


def planned(folder: Path, shard_rows: int = 4, limit: int | None = None) -> Plan:
    return make_plan(JobRecord(job(folder, shard_rows, limit), "job"), Store(str(folder / "out")))


def write_parquet(folder: Path, name: str, num_rows: int, group_rows: int = 1000) -> None:
    urls = [f"http://{name}/{row}" for row in range(num_rows)]
    pq.write_table(pa.table({"url": urls}), folder / "in" / f"{name}.parquet", row_group_size=group_rows)


def write_text(folder: Path, name: str, num_rows: int) -> None:
    (folder / "in" / f"{name}.txt").write_text("".join(f"http://{name}/{row}\n" for row in range(num_rows)))


def read_all(folder: Path, plan: Plan) -> list[str]:
    """The URLs of all shards, in order."""
    reader = ShardReader(Store(str(folder / "out")), plan.mapping)
    urls = [url for shard in shards_from_table(plan.shards) for url in reader.read(shard)["url"].to_pylist()]
    reader.close()
    return urls


def slices(plan: Plan) -> list[tuple[str, int, int]]:
    return [(Path(shard.uri).name, shard.first_row, shard.num_rows) for shard in shards_from_table(plan.shards)]


Write = Callable[[Path, str, int], None]

LIMITS = st.none() | st.integers(1, 60)
FILES = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=3)


@settings(max_examples=settings.default.max_examples // 2, deadline=None)
@given(st.sampled_from([write_parquet, write_text]), FILES, FILES, st.integers(1, 40), st.lists(LIMITS, max_size=3))
def test_every_row_is_in_exactly_one_shard_for_any_row_groups_limits_and_additions(
    write: Write, files: list[tuple[int, int]], more: list[tuple[int, int]], shard_rows: int, limits: list[int | None]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        expected: list[str] = []

        def add(prefix: str, sizes: list[tuple[int, int]]) -> None:
            for index, (num_rows, group_rows) in enumerate(sizes):
                if write is write_parquet:
                    write_parquet(folder, f"{prefix}{index}", num_rows, group_rows)
                else:
                    write_text(folder, f"{prefix}{index}", num_rows)
                expected.extend(f"http://{prefix}{index}/{row}" for row in range(num_rows))

        add("a", [(1, 1), *files])
        reached = 0
        for limit in limits:
            reached = max(reached, len(expected) if limit is None else min(limit, len(expected)))
            plan = planned(folder, shard_rows, limit)
            assert plan.num_rows == reached
            assert read_all(folder, plan) == expected[:reached]
        add("b", more)
        before = slices(plan) if limits else []
        plan = planned(folder, shard_rows)
        assert Counter(read_all(folder, plan)) == Counter(expected)
        assert slices(plan)[: len(before)] == before
        assert max(plan.shards["num_rows"].to_pylist()) <= shard_rows
        assert plan.shards["shard"].to_pylist() == list(range(plan.num_shards))
        assert load_plan(Store(str(folder / "out"))) == planned(folder, shard_rows) == plan


def test_planning_twice_gives_the_same_plan(folder: Path) -> None:
    write_parquet(folder, "a", 10)
    first = planned(folder)
    content = (folder / "out/plan/0.parquet").read_bytes()
    assert planned(folder) == first
    assert [path.name for path in (folder / "out/plan").iterdir()] == ["0.parquet"]
    (folder / "out/plan/0.parquet").unlink()
    planned(folder)
    assert (folder / "out/plan/0.parquet").read_bytes() == content
    assert first.shards.schema == PLAN_SCHEMA
    assert slices(first) == [("a.parquet", 0, 4), ("a.parquet", 4, 4), ("a.parquet", 8, 2)]


def test_new_files_extend_the_plan_at_its_end_in_a_new_file(folder: Path) -> None:
    write_parquet(folder, "m", 5)
    first = planned(folder)
    write_parquet(folder, "a", 3)
    second = planned(folder)
    assert slices(second) == [*slices(first), ("a.parquet", 0, 3)]
    assert sorted(path.name for path in (folder / "out/plan").iterdir()) == ["0.parquet", "1.parquet"]


def test_a_higher_limit_first_plans_the_rest_of_a_partially_planned_file(folder: Path) -> None:
    write_parquet(folder, "a", 10)
    write_parquet(folder, "b", 10)
    assert slices(planned(folder, limit=6)) == [("a.parquet", 0, 4), ("a.parquet", 4, 2)]
    assert slices(planned(folder, limit=12))[2:] == [("a.parquet", 6, 4), ("b.parquet", 0, 2)]
    lower = planned(folder, limit=1)
    assert lower.num_rows == 12
    assert "limit of 1 row: no effect, because an earlier run planned 12;" in describe_plan(lower, job(folder, limit=1))
    assert "limit" not in describe_plan(lower, job(folder, limit=12))
    assert slices(planned(folder))[4:] == [("b.parquet", 2, 4), ("b.parquet", 6, 4)]


def test_files_beyond_the_limit_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(folder, "a", 10)
    write_text(folder, "b", 10)
    hashed: list[str] = []
    fingerprint = Files.fingerprint
    monkeypatch.setattr(Files, "fingerprint", lambda self, uri: hashed.append(Path(uri).name) or fingerprint(self, uri))
    planned(folder, limit=3)
    assert set(hashed) == {"a.txt"}
    assert len(list((folder / "out/input").iterdir())) == 1


@pytest.mark.parametrize("write", [write_parquet, write_text])
def test_a_planned_file_that_changed_is_an_error_that_names_it(folder: Path, write: Write) -> None:
    write(folder, "a", 10)
    plan = planned(folder)
    stamp = next((folder / "in").iterdir())
    os.utime(stamp, (1, 1))
    assert planned(folder) == plan, "a new timestamp is not a change"
    write(folder, "a", 11)
    with pytest.raises(PlanError, match=r"a\.\w+: has changed since it was planned"):
        planned(folder)


def test_a_planned_file_that_is_missing_or_not_listed_is_an_error_that_names_it(folder: Path) -> None:
    write_parquet(folder, "a", 2)
    write_parquet(folder, "b", 2)
    planned(folder)
    (folder / "in/a.parquet").unlink()
    with pytest.raises(PlanError, match=r"a\.parquet: is in the plan .* but is missing"):
        planned(folder)


def test_a_missing_converted_file_is_an_error_that_names_its_source(folder: Path) -> None:
    write_text(folder, "a", 2)
    planned(folder)
    shutil.rmtree(folder / "out/input")
    with pytest.raises(PlanError, match=r"input/a\.txt-\w+\.parquet: is missing; it was made from .*a\.txt"):
        planned(folder)


def test_a_new_file_with_a_new_column_is_an_error_that_names_both(folder: Path) -> None:
    write_parquet(folder, "a", 2)
    planned(folder)
    pq.write_table(pa.table({"url": ["u"], "extra": [1]}), folder / "in/b.parquet")
    with pytest.raises(PlanError, match=r"b\.parquet: column 'extra' is new"):
        planned(folder)


def test_a_source_that_changes_during_conversion_raises_an_error_and_leaves_no_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(folder, "a", 2)
    convert = plan_module.convert

    def convert_while_it_grows(*arguments: object) -> None:
        convert(*arguments)  # type: ignore[arg-type]
        write_text(folder, "a", 3)

    monkeypatch.setattr(plan_module, "convert", convert_while_it_grows)
    with pytest.raises(SourceError, match=r"a\.txt: changed while it was being read"):
        planned(folder)
    assert list((folder / "out/input").iterdir()) == []


def test_an_output_folder_inside_the_input_folder_is_not_input(folder: Path) -> None:
    write_text(folder, "a", 2)
    inside = BuildJob.model_validate(
        {"source": {"paths": [str(folder / "in")]}, "output": str(folder / "in/out"), "shard_rows": 4}
    )
    store = Store(inside.output)
    assert make_plan(JobRecord(inside, "job"), store) == make_plan(JobRecord(inside, "job"), store)


def test_the_output_folder_can_move(folder: Path) -> None:
    write_text(folder, "a", 5)
    plan = planned(folder)
    assert plan.shards["uri"][0].as_py().startswith("input/a.txt-")
    (folder / "out").rename(folder / "moved")
    reader = ShardReader(Store(str(folder / "moved")), plan.mapping)
    assert reader.read(shards_from_table(plan.shards)[1])["url"].to_pylist() == ["http://a/4"]
    reader.close()


def test_equal_files_in_two_folders_are_both_planned(folder: Path) -> None:
    for name in ("x", "y"):
        (folder / "in" / name).mkdir()
        (folder / "in" / name / "same.txt").write_text("http://a\n")
    assert len({shard.uri for shard in shards_from_table(planned(folder).shards)}) == 2


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_input_without_rows_is_an_error(folder: Path, name: str) -> None:
    (folder / "in" / name).touch()
    with pytest.raises(SourceError, match="has no rows"):
        planned(folder)


def test_formats_can_be_mixed(folder: Path) -> None:
    (folder / "in/a.csv").write_text("url,caption,n\nu1,c1,1\n")
    (folder / "in/b.jsonl").write_text('{"URL": "u2", "caption": ["c2", "c3"]}\n')
    pq.write_table(pa.table({"url": ["u3"], "caption": ["c4"], "n": ["4"]}), folder / "in/c.parquet")
    plan = planned(folder)
    reader = ShardReader(Store(str(folder / "out")), plan.mapping)
    table = pa.concat_tables([reader.read(shard) for shard in shards_from_table(plan.shards)])
    reader.close()
    assert table["url"].to_pylist() == ["u1", "u2", "u2", "u3"]
    assert table["caption"].to_pylist() == ["c1", "c2", "c3", "c4"]
    assert table["n"].to_pylist() == ["1", None, None, "4"]


def test_drivers_that_plan_at_the_same_time_get_the_same_plan(folder: Path) -> None:
    write_text(folder, "a", 30)
    write_text(folder, "b", 30)
    plans: list[Plan] = []
    threads = [threading.Thread(target=lambda: plans.append(planned(folder))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plans) == 6
    assert all(plan == plans[0] for plan in plans)
    assert plans[0].num_rows == 60
    assert len(list((folder / "out/plan").iterdir())) == 1


def test_a_driver_that_loses_the_race_plans_only_the_remaining_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(folder, "a", 10)
    create = Store.create

    def be_slower(self: Store, name: str, data: bytes) -> bool:
        monkeypatch.setattr(Store, "create", create)
        planned(folder, limit=4)
        return create(self, name, data)

    monkeypatch.setattr(Store, "create", be_slower)
    assert slices(planned(folder)) == [("a.parquet", 0, 4), ("a.parquet", 4, 4), ("a.parquet", 8, 2)]
    assert sorted(path.name for path in (folder / "out/plan").iterdir()) == ["0.parquet", "1.parquet"]


@pytest.fixture
def damaged(folder: Path) -> Iterator[Path]:
    write_parquet(folder, "a", 2)
    planned(folder)
    write_parquet(folder, "b", 2)
    planned(folder)
    yield folder
    with pytest.raises(PlanError, match=r"out/plan"):
        load_plan(Store(str(folder / "out")))


def test_a_missing_plan_file_is_an_error(damaged: Path) -> None:
    (damaged / "out/plan/0.parquet").unlink()


def test_a_truncated_plan_file_is_an_error(damaged: Path) -> None:
    path = damaged / "out/plan/1.parquet"
    path.write_bytes(path.read_bytes()[:100])


def test_a_plan_file_from_a_newer_version_is_an_error(damaged: Path) -> None:
    path = damaged / "out/plan/1.parquet"
    table = pq.read_table(path)
    newer = table.schema.metadata[b"pairmill"].replace(b'"schema_version": 1', b'"schema_version": 99')
    pq.write_table(table.replace_schema_metadata({b"pairmill": newer}), path)


def test_wrong_shard_numbers_are_an_error(damaged: Path) -> None:
    shutil.copy(damaged / "out/plan/0.parquet", damaged / "out/plan/1.parquet")


def test_a_folder_without_a_plan_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="has no plan"):
        load_plan(Store(str(tmp_path)))


def test_the_folder_of_the_demo_is_answered_with_that_of_its_dataset(tmp_path: Path) -> None:
    (tmp_path / DATASET / "plan").mkdir(parents=True)
    (tmp_path / DATASET / "plan/0.parquet").touch()
    with pytest.raises(PlanError, match=f"did you mean {tmp_path}/{DATASET}"):
        load_plan(Store(str(tmp_path)))


def test_the_description_states_shards_output_files_and_memory(folder: Path) -> None:
    write_parquet(folder, "a", 10)
    text = describe_plan(planned(folder), job(folder, run={"download_actors": 2}))
    assert text.startswith("10 rows in 3 shards of up to 4: 12 output files; about 0 MB")
    assert "URLs from column 'url', no captions, 0 more carried through" in text
    assert text.count("\n") == 1


def test_the_description_advises_larger_shards_if_there_would_be_too_many_files(folder: Path) -> None:
    write_parquet(folder, "a", 120_000)
    text = describe_plan(planned(folder, shard_rows=2), job(folder, shard_rows=2, images={"store": "none"}))
    assert "180,000 output files" in text
    text = describe_plan(planned(folder, shard_rows=2), job(folder, shard_rows=2))
    assert "240,000 output files" in text
    assert "shard_rows: 1,024 would make 472 files" in text


@pytest.mark.parametrize(("rows", "is_told"), [(3_999, False), (4_000, True)])
def test_the_description_advises_smaller_shards_if_actors_would_be_idle_for_more_than_a_moment(
    folder: Path, rows: int, is_told: bool
) -> None:
    write_parquet(folder, "a", rows)
    text = describe_plan(planned(folder, shard_rows=4_000), job(folder, shard_rows=4_000, run={"download_actors": 4}))
    assert ("shard_rows: 250 would give each of 4 download actors work" in text) is is_told


@pytest.mark.parametrize(("device", "actors"), [("cpu", 4), ("cuda", 8)])
def test_the_description_advises_work_for_twice_as_many_actors_if_models_run_on_a_gpu(
    folder: Path, device: str, actors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("pairmill.pipeline.source.describe.resolve_device", lambda run: device)
    write_parquet(folder, "a", 16_000)
    plan = planned(folder, shard_rows=8_000)
    for models, expected in (([{"name": "tiny"}], actors), ([], 8)):
        text = describe_plan(plan, job(folder, shard_rows=8_000, models=models))
        assert f"give each of {expected} download actors work" in text


def test_plan_files_are_plain_parquet_with_the_columns_of_the_schema(folder: Path) -> None:
    write_parquet(folder, "a", 2)
    planned(folder)
    assert pq.read_table(io.BytesIO((folder / "out/plan/0.parquet").read_bytes())).column_names == PLAN_SCHEMA.names
