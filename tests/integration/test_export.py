"""Reads exports with other tools: webdataset, datasets, embedding-reader, open_clip_train, DataComp's scripts."""

import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from typer.testing import CliRunner

from pairmill.jobs.add_model import add_model
from pairmill.jobs.cli.main import app
from pairmill.jobs.export import export
from pairmill.jobs.select import select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import SubsetError, read_rows, read_subset
from pairmill.pipeline.export.formats import FormatError
from pairmill.pipeline.feed.pair_dataset import FeedConfig, PairDataset
from pairmill.pipeline.source.cursor import ReadError
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.subset import SelectJob
from tests.integration.test_build import picture, sequentially
from tests.integration.test_embed import CAPTION, embed_job, rows_in, samples
from tests.tars import write_tar

Row: TypeAlias = dict[str, object]

pytestmark = [  # webdataset leaves closing tars to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pairs in 12 shards, embedded by `tiny`; the subset `most` has all but the few with the lowest similarity."""
    folder = tmp_path_factory.mktemp("held")
    for number in range(4):
        write_tar(folder / f"{number:05d}.tar", samples(12, 12 * number))
    sequentially(embed_job(folder / "out", folder))
    make_subset(folder / "out", "most", {"top": {"by": "similarity", "count": 41}})
    return folder / "out"


def make_subset(dataset: Path, name: str, *steps: Row) -> None:
    select(SelectJob.model_validate({"dataset": str(dataset), "name": name, "steps": list(steps)}), overwrite=True)


def job(dataset: Path, output: Path, form: str, **more: Any) -> ExportJob:
    values = {"dataset": str(dataset), "subset": "most", "output": str(output), "format": form, "samples_per_file": 10}
    return ExportJob.model_validate({**values, **more})


def contents(output: str) -> dict[str, bytes]:
    """The files of an export, without its records."""
    files = (path for path in Path(output).rglob("*") if path.is_file() and ".pairmill" not in path.parts)
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def selected(dataset: Path) -> dict[str, Row]:
    """uid -> the row in `pairs/`, for each row of the subset."""
    store = Store(str(dataset))
    tables = read_rows(store, read_subset(store, "most"))
    uids = {uid for table in tables for uid in table["uid"].to_pylist()}
    return {row["uid"]: row for row in rows_in(dataset) if row["uid"] in uids}


def test_webdataset_reads_every_selected_pair_once_with_its_picture(dataset: Path, tmp_path: Path) -> None:
    result = export(job(dataset, tmp_path / "out", "webdataset"))
    tars = sorted((tmp_path / "out").glob("*.tar"))
    assert [tar.name for tar in tars] == [f"{n:05d}.tar" for n in range(5)]
    sizes = json.loads((tmp_path / "out/sizes.json").read_text())
    assert list(sizes.values()) == [10, 10, 10, 10, 1]
    expected = selected(dataset)
    keys = []
    for tar in tars:
        found = list(webdataset.WebDataset([str(tar)], shardshuffle=False))
        assert len(found) == sizes[tar.name]
        for sample in found:
            row = expected[sample["__key__"]]
            assert sample["jpg"] == picture(int(row["key"]))
            assert sample["txt"].decode() == row["caption_clean"] == CAPTION.format(int(row["key"]))
            assert json.loads(sample["json"])["similarity_tiny"] == pytest.approx(row["similarity"])
            keys.append(sample["__key__"])
    assert sorted(keys) == sorted(expected)
    assert result.record.rows == len(keys) == 41


def test_rows_are_shuffled_across_shards_by_the_seed_or_stay_in_dataset_order(dataset: Path, tmp_path: Path) -> None:
    def order(name: str, **more: Any) -> list[str]:
        export(job(dataset, tmp_path / name, "webdataset", **more))
        tars = sorted(str(tar) for tar in (tmp_path / name).glob("*.tar"))
        return [sample["__key__"] for sample in webdataset.WebDataset(tars, shardshuffle=False)]

    own = list(selected(dataset))
    assert order("plain", shuffle_seed=None) == own
    first, again, other = order("a"), order("b", samples_per_file=7), order("c", shuffle_seed=1)
    assert first == again
    assert sorted(first) == sorted(other) == sorted(own)
    assert len({tuple(first), tuple(other), tuple(own)}) == 3
    position = {uid: index for index, uid in enumerate(own)}
    assert (
        len({position[uid] // 4 for uid in first[:10]}) > 4
    )  # ten neighboring rows come from more shards than in dataset order


def test_parts_with_rows_of_several_groups_have_every_row_once(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairmill.pipeline.export.order.GROUP_SHARDS", 3)
    export(job(dataset, tmp_path / "out", "webdataset", samples_per_file=7))
    tars = sorted(str(tar) for tar in (tmp_path / "out").glob("*.tar"))
    expected = selected(dataset)
    found = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        assert sample["jpg"] == picture(int(expected[sample["__key__"]]["key"]))
        found[sample["__key__"]] = sample
    assert (len(tars), sorted(found)) == (6, sorted(expected))


def parquet_corpus(folder: Path) -> list[Path]:
    table = pa.table({"image": [picture(n) for n in range(9)], "caption": [CAPTION.format(n) for n in range(9)]})
    pq.write_table(table, folder / "in.parquet", row_group_size=4)
    return [folder / "in.parquet"]


def folder_corpus(folder: Path) -> list[Path]:
    (folder / "pictures").mkdir()
    for name, data in samples(9):
        (folder / "pictures" / name).write_bytes(data)
    return [folder / "pictures"]


def tar_corpus(folder: Path) -> list[Path]:
    return [write_tar(folder / "0.tar", samples(9))]


def output_of_outputs(folder: Path) -> list[Path]:
    sequentially(embed_job(folder / "one", *tar_corpus(folder)))
    sequentially(embed_job(folder / "two", folder / "one"))
    return [folder / "two"]


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
@pytest.mark.parametrize("corpus", [parquet_corpus, folder_corpus, tar_corpus, output_of_outputs])
def test_every_kind_of_corpus_is_exported_with_the_right_pictures(tmp_path: Path, corpus: Any, form: str) -> None:
    sequentially(embed_job(tmp_path / "out", *corpus(tmp_path)))
    make_subset(tmp_path / "out", "most")
    export(job(tmp_path / "out", tmp_path / "export", form))
    if form == "webdataset":
        tars = sorted(str(tar) for tar in (tmp_path / "export").glob("*.tar"))
        found = [(s["jpg"], s["txt"].decode()) for s in webdataset.WebDataset(tars, shardshuffle=False)]
    else:
        rows = pq.read_table(tmp_path / "export/00000.parquet").to_pylist()
        found = [(row["image"]["bytes"], row["caption"]) for row in rows]
    assert sorted(found) == sorted((picture(n), CAPTION.format(n)) for n in range(9))


def test_pictures_in_formats_that_trainers_ignore_become_pngs_of_the_same_pixels(tmp_path: Path) -> None:
    members = [
        ("a.bmp", picture(1, kind="BMP")),
        ("a.txt", b"one"),
        ("b.gif", picture(2, kind="GIF")),
        ("b.txt", b"two"),
    ]
    write_tar(tmp_path / "0.tar", [*members, ("c.webp", picture(3, kind="WEBP")), ("c.txt", b"three")])
    sequentially(embed_job(tmp_path / "out", tmp_path))
    make_subset(tmp_path / "out", "most")
    export(job(tmp_path / "out", tmp_path / "export", "webdataset"))
    found = {s["txt"]: s for s in webdataset.WebDataset([str(tmp_path / "export/00000.tar")], shardshuffle=False)}
    assert {text: "webp" if "webp" in s else "png" if "png" in s else "" for text, s in found.items()} == {
        b"one": "png", b"two": "png", b"three": "webp",
    }  # fmt: skip
    pixels = np.asarray(Image.open(io.BytesIO(found[b"one"]["png"])))
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(picture(1, kind="BMP")))))


def test_a_webdataset_export_refuses_rows_without_a_caption(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*samples(4), ("alone.jpg", picture(9))])
    sequentially(embed_job(tmp_path / "out", tmp_path))
    make_subset(tmp_path / "out", "most")
    with pytest.raises(FormatError, match="1 selected row without a caption: add `where: caption_clean is not None`"):
        export(job(tmp_path / "out", tmp_path / "export", "webdataset"))


@pytest.mark.parametrize("form", ["webdataset", "parquet", "clip-retrieval", "datacomp"])
def test_a_repeated_export_writes_each_missing_or_changed_file_again(dataset: Path, tmp_path: Path, form: str) -> None:
    export(job(dataset, tmp_path, form))
    before = contents(str(tmp_path))
    files = [name for name in before if re.search(r"\d\.(tar|parquet|npy|npz)$", name)]
    parts = len({re.sub(r"\D", "", name.rpartition("/")[2]) for name in files})
    assert len(files) == parts * {"clip-retrieval": 3, "datacomp": 2}.get(form, 1)
    flipped = {name: data[:60] + bytes([data[60] ^ 1]) + data[61:] for name, data in before.items()}
    cut = {name: data[:-1] for name, data in before.items()}
    for damaged in (flipped, cut):
        for name in files:
            (tmp_path / name).write_bytes(damaged[name])
        assert export(job(dataset, tmp_path, form)).written == parts
        assert contents(str(tmp_path)) == before
    (tmp_path / files[0]).unlink()
    assert export(job(dataset, tmp_path, form)).written == 1
    assert contents(str(tmp_path)) == before


def test_an_export_refuses_a_folder_that_is_not_empty(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(b"mine")
    with pytest.raises(JobError, match=r"is not empty and is not pairmill's: it contains 00000\.tar"):
        export(job(dataset, tmp_path, "webdataset"))
    assert (tmp_path / "00000.tar").read_bytes() == b"mine"


def test_select_and_export_have_the_same_result_on_ray_and_in_a_plain_loop(
    dataset: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [
        {"where": "width > 1"},
        {"top": {"by": "similarity", "count": 30}},
        {"dedup": {"by": "phash", "distance": 2}},
        {"balance": {"by": "concept", "entries": str(tmp_path / "words"), "curve": {"fraction": 0.8}}},
        {"balance": {"by": "width", "curve": 22}},
        {"repeat": {"by": "20 * similarity", "mean": 1.5}},
    ]
    (tmp_path / "words").write_text("\n".join(CAPTION.format("").split()) + "\n1\n12\n20\n")
    make_subset(dataset, "plain", *steps)
    export(job(dataset, tmp_path / "plain", "webdataset", subset="plain"))
    for module in ("select", "export"):
        monkeypatch.setattr(f"pairmill.jobs.{module}.ROWS_FOR_RAY", 0)
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", 10)
    make_subset(dataset, "ray", *steps)
    export(job(dataset, tmp_path / "ray", "webdataset", subset="ray"))
    store = Store(str(dataset))
    uids = [
        [uid for table in read_rows(store, read_subset(store, name)) for uid in table["uid"].to_pylist()]
        for name in ("plain", "ray")
    ]
    assert uids[0] == uids[1]
    for tar in (tmp_path / "plain").glob("*.tar"):
        assert tar.read_bytes() == (tmp_path / "ray" / tar.name).read_bytes()


def test_an_export_continues_where_it_stopped_and_refuses_the_folder_of_another_export(
    dataset: Path, tmp_path: Path
) -> None:
    export(job(dataset, tmp_path / "whole", "webdataset"))
    export(job(dataset, tmp_path / "out", "webdataset"))
    (tmp_path / "out/.pairmill/manifests/00002.json").unlink()  # as after a crash: the tar exists without its record
    (tmp_path / "out/00003.tar").write_bytes(b"half")
    (tmp_path / "out/.pairmill/manifests/00003.json").unlink()
    result = export(job(dataset, tmp_path / "out", "webdataset"))
    assert result.written == 2
    for tar in (tmp_path / "whole").glob("*.tar"):
        assert tar.read_bytes() == (tmp_path / "out" / tar.name).read_bytes()
    with pytest.raises(JobError, match=r"contains another export \(samples_per_file 10, not 20\)"):
        export(job(dataset, tmp_path / "out", "webdataset", samples_per_file=20))
    with pytest.raises(JobError, match=r"contains another export \(without key\);"):
        export(job(dataset, tmp_path / "out", "webdataset", carry="all"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hugging_face_datasets_decodes_the_parquet_files(dataset: Path, tmp_path: Path) -> None:
    import datasets

    export(job(dataset, tmp_path / "out", "parquet"))
    files = sorted(str(path) for path in (tmp_path / "out").glob("*.parquet"))
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    expected = selected(dataset)
    assert sorted(loaded["uid"]) == sorted(expected)
    for row in loaded.select(range(5)):
        source = expected[row["uid"]]
        assert isinstance(row["image"], Image.Image)
        assert np.array_equal(row["image"], Image.open(io.BytesIO(picture(int(source["key"])))))
        assert row["similarity"] == source["similarity"]
        assert row["caption"] == source["caption"]


def test_embedding_reader_finds_each_embedding_beside_its_metadata(dataset: Path, tmp_path: Path) -> None:
    from embedding_reader import EmbeddingReader

    export(job(dataset, tmp_path / "out", "clip-retrieval"))
    expected = selected(dataset)
    for folder, side in (("img_emb", "image"), ("text_emb", "text")):
        reader = EmbeddingReader(
            embeddings_folder=str(tmp_path / "out" / folder),
            metadata_folder=str(tmp_path / "out/metadata"),
            meta_columns=["uid"],
            file_format="parquet_npy",
        )
        assert (reader.count, reader.dimension) == (41, 128)
        seen = []
        for embeddings, metadata in reader(batch_size=16, show_progress=False):
            for vector, uid in zip(embeddings, metadata["uid"], strict=True):
                assert np.array_equal(vector, np.asarray(expected[uid][f"{side}_embedding_tiny"], np.float16))
                seen.append(uid)
        assert seen == list(expected)


def test_datacomps_subset_and_metadata_have_what_its_tools_read(dataset: Path, tmp_path: Path) -> None:
    export(job(dataset, tmp_path / "out", "datacomp"))
    expected = selected(dataset)
    subset = np.load(tmp_path / "out/subset.npy")
    assert subset.dtype == np.dtype("u8,u8")
    numbers = sorted((int(uid[:16], 16), int(uid[16:], 16)) for uid in expected)
    assert subset.tolist() == numbers == sorted(subset.tolist())
    seen = []
    for path in sorted((tmp_path / "out/metadata").glob("*.parquet")):
        table = pq.read_table(path)
        arrays = np.load(path.with_suffix(".npz"))
        assert {"uid", "url", "text", "original_width", "original_height", "sha256"} <= set(table.column_names)
        for index, row in enumerate(table.to_pylist()):
            source = expected[row["uid"]]
            assert row["tiny_similarity_score"] == source["similarity"]
            assert row["text"] == source["caption"]
            for side, name in (("img", "image"), ("txt", "text")):
                vector = arrays[f"tiny_{side}"][index]
                assert np.array_equal(vector, np.asarray(source[f"{name}_embedding_tiny"], np.float16))
            seen.append(row["uid"])
    assert seen == list(expected)


@pytest.mark.timeout(600)
def test_open_clip_train_trains_on_the_tars_as_they_are(dataset: Path, tmp_path: Path) -> None:
    export(job(dataset, tmp_path / "out", "webdataset"))
    command = [sys.executable, "-m", "open_clip_train.main", "--dataset-type", "webdataset"]
    command += ["--train-data", str(tmp_path / "out") + "/{00000..00004}.tar", "--train-num-samples", "32"]
    command += ["--model", tiny_folder(), "--batch-size", "8", "--epochs", "1", "--workers", "1", "--warmup", "1"]
    command += ["--precision", "fp32", "--device", "cpu", "--logs", str(tmp_path / "logs"), "--name", "run"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "2"}
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert (tmp_path / "logs/run/checkpoints/epoch_1.pt").is_file()
    assert "Train Epoch: 0 [32/32" in done.stderr + done.stdout


def tiny_folder() -> str:
    from pairmill.pipeline.encode.weights import TINY_FOLDER

    return f"local-dir:{TINY_FOLDER}"


@pytest.mark.parametrize(
    ("form", "more", "says"),
    [
        ("webdataset", {"models": ["tiny"]}, "stores no embeddings; use clip-retrieval"),
        ("clip-retrieval", {"models": ["other"]}, "has no embeddings of 'other'; it has: tiny"),
        ("datacomp", {"models": []}, "has no embeddings"),
        ("webdataset", {"subset": "none"}, "has no subset 'none'; it has: most"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    dataset: Path, tmp_path: Path, form: str, more: Row, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        export(job(dataset, tmp_path / "out", form, **more))
    assert not (tmp_path / "out").exists()


def test_a_missing_tar_is_named_and_the_export_continues_once_it_is_back(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number:05d}.tar", samples(8, 8 * number))
    sequentially(embed_job(tmp_path / "out", tmp_path))
    make_subset(tmp_path / "out", "most")
    (tmp_path / "00001.tar").rename(tmp_path / "away")
    with pytest.raises(ReadError, match=r"00001\.tar"):
        export(job(tmp_path / "out", tmp_path / "export", "webdataset", shuffle_seed=None))
    assert not (tmp_path / "export/sizes.json").exists()
    (tmp_path / "away").rename(tmp_path / "00001.tar")
    result = export(job(tmp_path / "out", tmp_path / "export", "webdataset", shuffle_seed=None))
    assert result.record.rows == 16
    assert len(list((tmp_path / "export").glob("*.tar"))) == 2


def test_a_new_generation_with_the_same_pairs_is_exported_and_one_with_other_pairs_must_be_selected_again(
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "0.tar", samples(8))
    sequentially(embed_job(tmp_path / "out", tmp_path))
    make_subset(tmp_path / "out", "most")
    first = tmp_path / "out/manifests/000000000.json"
    manifest = json.loads(first.read_text())
    first.with_name("000000000.g1.json").write_text(json.dumps({**manifest, "generation": 1}))
    first.unlink()
    assert export(job(tmp_path / "out", tmp_path / "export", "webdataset")).record.rows == 8
    manifest["files"]["pairs"]["blake2b"] = "0" * 32
    first.with_name("000000000.g2.json").write_text(json.dumps({**manifest, "generation": 2}))
    with pytest.raises(SubsetError, match="shard 000000000 was rebuilt after 'most' was made; select again"):
        export(job(tmp_path / "out", tmp_path / "again", "webdataset"))
    assert not (tmp_path / "again").exists()


def test_rows_without_a_caption_cannot_become_an_array_of_text_embeddings(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*samples(4), ("alone.jpg", picture(9))])
    sequentially(embed_job(tmp_path / "out", tmp_path))
    make_subset(tmp_path / "out", "most")
    with pytest.raises(
        ValueError, match="text_embedding_tiny is null in 1 selected row: add `where: similarity_tiny is"
    ):
        export(job(tmp_path / "out", tmp_path / "export", "clip-retrieval"))


def test_an_export_of_a_subset_stays_the_same_when_the_dataset_grows(plain_loop: None, tmp_path: Path) -> None:
    """Shards that are newer than the subset may lack a model that was added before."""
    own, source = tmp_path / "out", tmp_path / "in"
    source.mkdir()
    write_tar(source / "0.tar", samples(8))
    sequentially(embed_job(own, source))
    add_model(str(own), {"name": "tiny", "alias": "more"})
    make_subset(own, "most", {"top": {"by": "similarity_more", "count": 6}})
    forms: list[Row] = [
        {"form": "webdataset"},
        {"form": "parquet"},
        {"form": "datacomp", "models": ["more"]},
        {"form": "clip-retrieval", "models": ["more"]},
    ]
    before = [export(job(own, tmp_path / f"before-{form['form']}", **form)) for form in forms]
    write_tar(source / "1.tar", samples(4, 8))
    sequentially(embed_job(own, source))
    for form, old in zip(forms, before, strict=True):
        new = export(job(own, tmp_path / f"after-{form['form']}", **form))
        assert contents(new.output) == contents(old.output)
        assert export(job(own, Path(old.output), **form)).written == 0
    make_subset(own, "most")
    with pytest.raises(JobError, match="models: some shards lack the model 'more'; run: pairmill embed "):
        export(job(own, tmp_path / "new-datacomp", "datacomp", models=["more"]))
    assert export(job(own, tmp_path / "new", "webdataset")).models_left_out == ("more",)
    told = CliRunner().invoke(app, ["export", str(own), "most", str(tmp_path / "told")])
    assert "left out 'more', which some of these shards lack" in told.stdout


def test_an_exported_table_has_the_same_rows_as_the_subset_in_another_order(dataset: Path, tmp_path: Path) -> None:
    export(job(dataset, tmp_path / "out", "parquet", samples_per_file=1_000))
    table = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "out").glob("*.parquet")])
    expected = selected(dataset)
    assert table.num_rows == len(expected)
    for row in table.drop_columns(["image"]).to_pylist():
        source = expected[row["uid"]]
        assert {name: source[name] for name in row} == row


def test_a_weighted_subset_is_written_as_its_first_epoch_or_with_a_weight_column(dataset: Path, tmp_path: Path) -> None:
    make_subset(dataset, "heavy", {"repeat": {"by": "20 * similarity", "samples": 70}})
    store, shown, weights = Store(str(dataset)), Counter[str](), dict[str, float]()
    feed = PairDataset(FeedConfig(str(dataset), "heavy", ("image",), shuffle=False))
    bodies = {row["uid"]: row["image"] for row in feed if not shown.update([row["uid"]])}
    for table in read_rows(store, read_subset(store, "heavy")):
        weights |= dict(zip(table["uid"].to_pylist(), table["weight"].to_pylist(), strict=True))
    assert max(shown.values()) > 2 and len(shown) < len(weights) == 48

    result = export(job(dataset, tmp_path / "out", "webdataset", subset="heavy"))
    keys = [f"{uid}-{copy}" if shown[uid] > 1 else uid for uid in shown for copy in range(shown[uid])]
    tars = sorted(str(tar) for tar in (tmp_path / "out").glob("*.tar"))
    found = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert sorted(sample["__key__"] for sample in found) == sorted(keys)
    assert all(sample["jpg"] == bodies[json.loads(sample["json"])["uid"]] for sample in found)
    assert result.record.rows == sum(json.loads((tmp_path / "out/sizes.json").read_text()).values()) == shown.total()
    order = [sample["__key__"].partition("-")[0] for sample in found]
    assert sum(one == other for one, other in pairwise(order)) < len(order) / 5  # copies are not next to each other

    export(job(dataset, tmp_path / "column", "webdataset", subset="heavy", repeat="weight"))
    tars = sorted(str(tar) for tar in (tmp_path / "column").glob("*.tar"))
    details = [json.loads(sample["json"]) for sample in webdataset.WebDataset(tars, shardshuffle=False)]
    assert {each["uid"]: each["weight"] for each in details} == pytest.approx(weights)
    for form, name in [("parquet", "*.parquet"), ("datacomp", "metadata/*.parquet"), ("clip-retrieval", "*/*.parquet")]:
        export(job(dataset, tmp_path / form, form, subset="heavy"))
        rows = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / form).glob(name)))
        assert dict(zip(rows["uid"].to_pylist(), rows["weight"].to_pylist(), strict=True)) == weights
    uids = np.load(tmp_path / "datacomp/subset.npy")
    assert Counter(f"{high:016x}{low:016x}" for high, low in uids.tolist()) == shown
    export(job(dataset, tmp_path / "copies", "parquet", subset="heavy", repeat="copies"))
    rows = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "copies").glob("*.parquet")))
    assert Counter(rows["uid"].to_pylist()) == shown and "weight" not in rows.column_names
    with pytest.raises(JobError, match="contains another export"):
        export(job(dataset, tmp_path / "copies", "parquet", subset="heavy"))


def test_weights_of_a_subset_and_a_column_of_that_name_are_never_mixed_up(tmp_path: Path) -> None:
    fields = [(f"{n}.json", json.dumps({"weight": n + 0.5, "caption": f"number {n}"}).encode()) for n in range(3)]
    write_tar(tmp_path / "0.tar", sorted([*fields, *((f"{n}.jpg", picture(n)) for n in range(3))]))
    sequentially(embed_job(tmp_path / "out", tmp_path))
    make_subset(tmp_path / "out", "most", {"repeat": {"weight": "2 * weight"}})

    def exported(form: str, files: str, **more: Any) -> list[Row]:
        folder = tmp_path / f"{form}-{len(more)}"
        export(job(tmp_path / "out", folder, form, **more))
        return [row for path in sorted(folder.glob(files)) for row in pq.read_table(path).to_pylist()]

    assert exported("webdataset", "none", carry=["weight"]) == []
    samples = webdataset.WebDataset([str(tmp_path / "webdataset-1/00000.tar")], shardshuffle=False)
    own = [(each["txt"].decode()[-1], json.loads(each["json"])["weight"]) for each in samples]
    assert sorted(own) == [("0", 0.5), *[("1", 1.5)] * 3, *[("2", 2.5)] * 5]
    rows = exported("parquet", "*.parquet", repeat="copies")
    assert sorted((row["caption"][-1], row["weight"]) for row in rows) == sorted(own)
    pool = exported("datacomp", "metadata/*.parquet")
    assert sorted((row["text"][-1], row["weight"]) for row in pool) == [("0", 1), ("1", 3), ("2", 5)]
    for form, more in (("parquet", {}), ("clip-retrieval", {}), ("webdataset", {"carry": "all", "repeat": "weight"})):
        with pytest.raises(JobError, match="the dataset has a column 'weight', and so does the subset"):
            exported(form, "none", **more)
