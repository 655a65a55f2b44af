"""Tests an export into a folder where one already stands: it is continued, repaired or refused with a remedy."""

import json
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pairmill.jobs.cli.main import app
from pairmill.jobs.export import ExportResult, export
from pairmill.jobs.export_mixture import export_any
from pairmill.jobs.mix import mix
from pairmill.jobs.select import select
from pairmill.pipeline.columns.column_files import write_columns
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.pipeline.feed.config import FeedConfig, FeedError
from pairmill.pipeline.feed.pair_dataset import PairDataset
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.mixture import MixJob
from pairmill.schemas.pairs import score_columns
from pairmill.schemas.subset import SelectJob
from tests.committed_shards import CONTRACT, pair, write_dataset

ROWS = 6
MORE = ["similarity_more", "image_embedding_more", "text_embedding_more"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset with the subset `all`, in a folder whose name has a space."""
    embedding = {"image_embedding_tiny": [1.0, 0.0], "text_embedding_tiny": [0.0, 1.0]}
    root = tmp_path / "my data"
    write_dataset(root, [[pair(f"number {number}", 0.3, **embedding) for number in range(ROWS)]])
    select(SelectJob.model_validate({"dataset": str(root), "name": "all"}))
    return root


def add_model(dataset: Path, fingerprint: str = "f") -> None:
    """Add the columns of the model `more`, as `embed --add-model` does."""
    store = Store(str(dataset))
    card = {"name": "tiny", "alias": "more", "fingerprint": fingerprint}
    store.create("columns/more/model.json", json.dumps(card).encode())
    schema = pa.schema(score_columns("more", 2))
    values = [[0.5] * ROWS, [[1.0, 0.0]] * ROWS, [[0.0, 1.0]] * ROWS]
    table = pa.table([pa.array(each, field.type) for each, field in zip(values, schema, strict=True)], schema=schema)
    (manifest,) = read_manifests(store)
    table = table.append_column("row_id", pa.array([f"0:{number}" for number in range(ROWS)]))
    write_columns(store, "more", table, manifest, {"models": [asdict(CONTRACT)]}, "f" * 32)


def exported(dataset: Path, form: str, **more: Any) -> ExportResult:
    values = {"dataset": str(dataset), "subset": "all", "output": str(dataset.parent / form), "format": form, **more}
    return export(ExportJob.model_validate({"samples_per_file": 2, **values}))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("form", "newer", "models"),
    [
        ("webdataset", MORE[:1], None),
        ("parquet", MORE[:1], None),
        ("clip-retrieval", MORE[:1], ["tiny"]),
        ("datacomp", MORE, None),
    ],
)
def test_an_export_goes_on_with_its_own_columns_after_a_model_was_added_and_not_after_one_was_deleted(
    dataset: Path, form: str, newer: list[str], models: list[str] | None
) -> None:
    output, part = dataset.parent / form, "metadata/metadata_0001.parquet" if form == "clip-retrieval" else "*00001.*"
    exported(dataset, form, models=models)
    before = contents(output)
    add_model(dataset)
    next(output.rglob(part)).unlink()
    result = exported(dataset, form, models=models)
    assert contents(output) == before
    assert (result.written, sorted(result.newer_columns)) == (1, sorted(newer))
    shutil.rmtree(output)
    assert set(newer) < {*exported(dataset, form, models=models).record.columns}
    shutil.rmtree(dataset / "columns")
    with pytest.raises(JobError, match=r"another export \(also with .*similarity_more"):
        exported(dataset, form, models=models)


def test_neither_an_export_nor_a_checkpoint_goes_on_with_values_that_were_replaced(dataset: Path) -> None:
    mixture, columns = str(dataset.parent / "mix"), ("uid", "similarity_more")
    add_model(dataset)
    mix(MixJob.model_validate({"output": mixture, "sources": [{"dataset": str(dataset), "share": 1}]}))
    exports = [{"dataset": str(dataset), "subset": "all", "output": str(dataset.parent / "of subset")},
               {"dataset": mixture, "output": str(dataset.parent / "of mixture")}]  # fmt: skip
    jobs = [ExportJob.model_validate({**each, "format": "parquet", "samples_per_file": 2}) for each in exports]
    states = [(root, PairDataset(FeedConfig(root, columns=columns)).state_dict()) for root in (str(dataset), mixture)]
    for job in jobs:
        export_any(job)
        Path(job.output, "00001.parquet").unlink()
    shutil.rmtree(dataset / "columns")
    add_model(dataset, "g")
    for job, name in zip(jobs, ("more", "my data: more"), strict=True):
        with pytest.raises(JobError, match=rf"another export \(with values of {name} from before they were replaced\)"):
            export_any(job)
    for root, state in states:
        with pytest.raises(FeedError, match="more from before it was replaced: start a new epoch"):
            PairDataset(FeedConfig(root, columns=columns)).load_state_dict(state)


def test_an_export_whose_record_does_not_name_the_added_models_goes_on(dataset: Path) -> None:
    """Earlier versions did not record them."""
    add_model(dataset)
    exported(dataset, "parquet")
    record = dataset.parent / "parquet/.pairmill/export.json"
    values = json.loads(record.read_bytes())
    assert values.pop("added")
    del values["record_blake2b"]
    record.write_text(json.dumps(values))
    (dataset.parent / "parquet/00001.parquet").unlink()
    assert exported(dataset, "parquet").written == 1


def test_a_model_that_the_job_names_is_never_left_out(dataset: Path) -> None:
    exported(dataset, "datacomp")
    add_model(dataset)
    with pytest.raises(JobError, match=r"another export \(without image_embedding_more, similarity_more"):
        exported(dataset, "datacomp", models=["tiny", "more"])


def test_files_about_the_whole_export_are_updated_and_named(dataset: Path) -> None:
    for form, names in (("webdataset", ["sizes.json", "README.md"]), ("datacomp", ["README.md", "subset.npy"])):
        assert exported(dataset, form).updated == ()
        before = contents(dataset.parent / form)
        (dataset.parent / form / names[0]).unlink()
        (dataset.parent / form / names[1]).write_bytes(b"")
        result = exported(dataset, form)
        assert (result.written, result.updated) == (0, tuple(names))
        assert contents(dataset.parent / form) == before
    arguments = ["export", str(dataset), "all", str(dataset.parent / "webdataset"), "--samples-per-file", "2"]
    (dataset.parent / "webdataset/README.md").unlink()
    assert "0 written in this run, README.md updated" in CliRunner().invoke(app, arguments).stdout


def test_no_command_is_offered_that_deletes_an_export_and_what_the_user_added(dataset: Path) -> None:
    exported(dataset, "parquet")
    (dataset.parent / "parquet/notes.txt").write_text("mine")
    before = contents(dataset.parent / "parquet")
    with pytest.raises(JobError, match=r"samples_per_file 2, not 3\); choose another folder$"):
        exported(dataset, "parquet", samples_per_file=3)
    select(SelectJob.model_validate({"dataset": str(dataset), "name": "all"}), overwrite=True)
    with pytest.raises(JobError, match=r"can be deleted once it is no longer needed\); choose another folder$"):
        exported(dataset, "parquet")
    assert contents(dataset.parent / "parquet") == before


@pytest.mark.parametrize(
    ("given", "example"), [([], ["clean", "train"]), (["all"], ["all", "train"]), (["new"], ["all", "new"])]
)
def test_an_export_without_an_output_or_a_subset_says_which_is_missing_with_an_example(
    dataset: Path, given: list[str], example: list[str]
) -> None:
    done = CliRunner().invoke(app, ["export", str(dataset), *given])
    assert done.exit_code == 1
    command = done.stderr.strip().rpartition("as in: ")[2].partition(";")[0]
    assert shlex.split(command) == ["pairmill", "export", str(dataset), *example]
