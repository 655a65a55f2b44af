"""Output invariant, part two: common readers can open a whole export, given only its folder."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import numpy as np
import numpy.typing as npt
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pairmill.jobs.export import export
from pairmill.jobs.select import select
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.integrity import DamagedFileError
from pairmill.pipeline.export.reader import MissingDataError
from pairmill.pipeline.feed.pair_dataset import FeedConfig, PairDataset
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.subset import SelectJob
from tests.integration.conftest import SHARED_DATA, PictureWeb
from tests.integration.test_build import job, picture, sequentially, write_input
from tests.integration.test_embed import embed_job, rows_in, samples
from tests.records import values_of
from tests.tars import write_tar

Pixels: TypeAlias = npt.NDArray[np.uint8]

FORMATS = ("webdataset", "parquet", "clip-retrieval", "datacomp")
PROCESSOR = ImageProcessor(ImagesConfig())
with open(SHARED_DATA / "awkward/manifest.csv", newline="") as manifest:
    LISTED = list(csv.DictReader(manifest))
PATHS = [SHARED_DATA / "awkward" / row["file"] for row in LISTED]

pytestmark = [  # webdataset leaves closing tars to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets"),
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning"),  # Pillow warns about it in readers
]


def export_all(dataset: Path, folder: Path, *forms: str, **more: Any) -> None:
    """Export the whole dataset in each format, into `FOLDER/FORMAT`."""
    steps = [{"where": "caption_clean is not None"}]
    select(SelectJob.model_validate({"dataset": str(dataset), "name": "all", "steps": steps}), overwrite=True)
    for form in forms:
        values = {"dataset": str(dataset), "subset": "all", "output": str(folder / form), "format": form, **more}
        export(ExportJob.model_validate(values))


def tars_in(folder: Path) -> list[dict[str, object]]:
    return list(webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False))


def load_dataset(folder: Path, cache: Path) -> Any:
    import datasets

    return datasets.load_dataset(str(folder), cache_dir=str(cache / folder.name))["train"]


@pytest.fixture(scope="module", params=["embed", "build"])
def awkward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All awkward pictures, from a tar or from the web, exported in all formats."""
    folder = tmp_path_factory.mktemp("awkward")
    if request.param == "embed":
        members = []
        for number, path in enumerate(PATHS):
            members += [(f"{number:04d}{path.suffix}", path.read_bytes()), (f"{number:04d}.txt", path.stem.encode())]
        sequentially(embed_job(folder / "out", write_tar(folder / "0.tar", members), shard_rows=100))
    else:
        build_awkward(folder)
    export_all(folder / "out", folder, *FORMATS)
    return folder


def build_awkward(folder: Path) -> None:
    web = PictureWeb()
    rows = [
        {"url": web.add(f"/{number:04d}", path.read_bytes()), "caption": path.stem} for number, path in enumerate(PATHS)
    ]
    source = write_input(folder / "list.parquet", rows)
    sequentially(job(source, folder / "out", shard_rows=100, models=[{"name": "tiny"}]))
    web.close()


@pytest.fixture(scope="module")
def scored(awkward: Path) -> dict[str, Pixels]:
    """uid -> the pixels that the model saw."""
    rows, is_build = rows_in(awkward / "out"), (awkward / "list.parquet").exists()
    numbers = {row["uid"]: int(row["url"].rpartition("/")[2] if is_build else row["key"]) for row in rows}
    decoded = {row["sha256"] for row in LISTED if row["expect"] == "decode"}
    assert {LISTED[number]["sha256"] for number in numbers.values()} >= decoded
    bodies = {uid: PATHS[number].read_bytes() for uid, number in numbers.items()}
    if is_build:
        bodies = {uid: PROCESSOR.process(body).image or b"" for uid, body in bodies.items()}
    return {uid: PROCESSOR.pixels(body) for uid, body in bodies.items()}


@pytest.mark.parametrize("reader", ["webdataset", "hf webdataset", "hf parquet", "duckdb", "polars", "pyarrow"])
def test_each_reader_sees_the_scored_pixels_of_every_awkward_picture(
    awkward: Path, scored: dict[str, Pixels], tmp_path: Path, reader: str
) -> None:
    folder = awkward / ("webdataset" if "webdataset" in reader else "parquet")
    found: dict[str, object] = {}
    if reader == "webdataset":
        decoded = webdataset.WebDataset([str(folder / "00000.tar")], shardshuffle=False).decode("pil")
        found = {sample["__key__"]: sample.get("jpg") or sample.get("png") or sample["webp"] for sample in decoded}
    elif reader == "hf webdataset":
        rows = load_dataset(folder, tmp_path)
        found = {row["__key__"]: next(row[name] for name in ("jpg", "png", "webp") if row.get(name)) for row in rows}
    elif reader == "hf parquet":
        found = {row["uid"]: row["image"] for row in load_dataset(folder, tmp_path)}
    elif reader == "duckdb":
        rows = duckdb.connect().sql(f"select uid, image.bytes from read_parquet('{folder}/*.parquet')").fetchall()  # noqa: S608
        found = {uid: Image.open(io.BytesIO(body)) for uid, body in rows}
    elif reader == "polars":
        rows = polars.scan_parquet(folder / "*.parquet").select("uid", "image").collect().rows()
        found = {uid: Image.open(io.BytesIO(image["bytes"])) for uid, image in rows}
    else:
        rows = pq.read_table(folder, columns=["uid", "image"]).to_pylist()
        found = {row["uid"]: Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows}
    assert found.keys() == scored.keys()
    for uid, opened in found.items():
        assert np.array_equal(np.asarray(opened.convert("RGB")), scored[uid])


def test_open_clips_own_loader_sees_the_scored_pixels(awkward: Path, scored: dict[str, Pixels]) -> None:
    """The pipeline of open_clip_train's `get_wds_dataset`, with a transform that keeps the pixels."""
    from argparse import Namespace

    from open_clip_train.data import get_wds_dataset

    tar = str(awkward / "webdataset/00000.tar")
    settings = {"train_data": tar, "val_data": tar, "train_num_samples": None, "val_num_samples": None, "workers": 0}
    more = {"dataset_resampled": False, "seed": 0, "batch_size": 1, "world_size": 1, "rank": 0, "distributed": False}
    loaded = get_wds_dataset(
        Namespace(**settings, **more, train_data_upsampling_factors=None),
        lambda picture: np.asarray(picture.convert("RGB")),
        is_train=False,
        tokenizer=lambda text: [np.array([0])],
    )
    seen = sorted(hashlib.sha256(images[0].numpy().tobytes()).hexdigest() for images, _ in loaded.dataloader)
    assert seen == sorted(hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in scored.values())


@pytest.mark.parametrize("form", FORMATS)
def test_hugging_face_datasets_opens_each_format_by_its_folder(
    awkward: Path, scored: dict[str, Pixels], tmp_path: Path, form: str
) -> None:
    loaded = load_dataset(awkward / form, tmp_path)
    assert len(loaded) == len(scored)
    uids = loaded["__key__"] if form == "webdataset" else loaded["uid"]
    assert sorted(uids) == sorted(scored)


def test_arrow_and_pandas_open_a_parquet_export_by_its_folder(awkward: Path, scored: dict[str, Pixels]) -> None:
    import pandas

    assert pq.read_table(awkward / "parquet").num_rows == len(scored)
    assert len(pandas.read_parquet(awkward / "parquet", columns=["uid"])) == len(scored)


def test_image_path_is_the_file_in_a_folder_and_the_key_in_a_tar(tmp_path: Path) -> None:
    """clip-retrieval opens and copies the files that `image_path` names."""
    (tmp_path / "pictures").mkdir()
    for name, data in samples(4):
        (tmp_path / "pictures" / name).write_bytes(data)
    write_tar(tmp_path / "0.tar", samples(4))
    for name, source in (("of files", tmp_path / "pictures"), ("of tar", tmp_path / "0.tar")):
        sequentially(embed_job(tmp_path / name / "out", source))
        export_all(tmp_path / name / "out", tmp_path / name, "clip-retrieval")
    files, tar = (
        pq.read_table(tmp_path / name / "clip-retrieval/metadata/metadata_0000.parquet")
        for name in ("of files", "of tar")
    )
    digests = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files["image_path"].to_pylist()]
    assert digests == files["sha256"].to_pylist()
    assert tar["image_path"].to_pylist() == tar["key"].to_pylist() == [f"{n:04d}" for n in range(4)]


def test_columns_named_like_those_of_exports_are_kept_by_all_formats(tmp_path: Path) -> None:
    source = SHARED_DATA / "cases/carried_names.parquet"
    sequentially(embed_job(tmp_path / "out", source))
    export_all(tmp_path / "out", tmp_path, *FORMATS, carry="all")
    for form, pattern in (("parquet", "*.parquet"), ("clip-retrieval", "metadata/*.parquet")):
        (path,) = (tmp_path / form).glob(pattern)
        table = pq.read_table(path).sort_by("row_id")
        assert table["export_row"].to_pylist() == pq.read_table(source)["export_row"].to_pylist()
        assert "image_embedding" in table.column_names
    for sample in tars_in(tmp_path / "webdataset"):
        assert {"image_embedding", "export_row", "source_similarity_old"} < json.loads(sample["json"]).keys()


def licensed_build(web: PictureWeb, folder: Path, **images: Any) -> Path:
    rows = [
        {"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}", "licence": f"CC-{n}", "STATUS": n / 0.7}
        for n in range(12)
    ]
    sequentially(
        job(write_input(folder / "in.parquet", rows), folder / "out", models=[{"name": "tiny"}], images=images)
    )
    return folder / "out"


def test_carried_columns_are_in_the_json_of_builds_and_of_their_exports(web: PictureWeb, tmp_path: Path) -> None:
    output = licensed_build(web, tmp_path, carry=["licence", "STATUS"])
    export_all(output, tmp_path, "webdataset")
    export_all(output, tmp_path / "none", "webdataset", carry=[])
    rows = {row["uid"]: row for row in rows_in(output)}
    for folder in (output / "images", tmp_path / "webdataset"):
        for sample in tars_in(folder):
            found, row = json.loads(sample["json"]), rows[sample["__key__"]]
            assert (found["licence"], found["source_STATUS"]) == (row["licence"], row["source_STATUS"])
    assert "licence" not in json.loads(tars_in(tmp_path / "none/webdataset")[0]["json"])
    assert load_dataset(tmp_path / "webdataset", tmp_path)[0]["json"]["licence"].startswith("CC-")


def test_a_column_that_does_not_exist_cannot_be_carried(web: PictureWeb, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"images\.carry: no carried column 'license'; the input has: licence, STATUS"):
        licensed_build(web, tmp_path, carry=["license"])
    assert not (tmp_path / "out/plan").exists()
    output = licensed_build(web, tmp_path)
    with pytest.raises(JobError, match="carry: no carried column 'no'"):
        export_all(output, tmp_path, "webdataset", carry=["no"])


def test_a_build_says_how_many_pictures_each_of_its_tars_has(web: PictureWeb, tmp_path: Path) -> None:
    output = licensed_build(web, tmp_path)
    sizes = json.loads((output / "images/sizes.json").read_text())
    assert sizes == {path.name: len(tars_in_one(path)) for path in sorted((output / "images").glob("*.tar"))}
    assert verify(Store(str(output)), rescore=2).problems == []


def tars_in_one(path: Path) -> list[dict[str, object]]:
    return list(webdataset.WebDataset([str(path)], shardshuffle=False))


def flip(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 4]))


def feed_all(dataset: Path, **more: Any) -> list[Any]:
    return list(PairDataset(FeedConfig(str(dataset), "all", **more)))


def test_a_changed_byte_of_a_stored_picture_stops_export_and_feed_and_names_the_tar(
    web: PictureWeb, tmp_path: Path
) -> None:
    output = licensed_build(web, tmp_path)
    export_all(output, tmp_path / "before", "webdataset")
    row = rows_in(output)[3]
    tar = output / row["image_tar"]
    body = tar.read_bytes()
    for place in (0.0, 0.3, 0.6, 0.999):
        tar.write_bytes(body)
        flip(tar, row["image_offset"] + int(place * row["image_length"]))
        for form in ("webdataset", "parquet"):
            with pytest.raises(MissingDataError, match=tar.name):
                export_all(output, tmp_path, form)
        with pytest.raises(DamagedFileError, match=tar.name):
            feed_all(output)
    assert len(feed_all(output, columns=("caption",))) == 12


def test_a_changed_byte_of_a_corpus_stops_export_and_feed_and_names_the_tar(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", samples(6))
    sequentially(embed_job(tmp_path / "out", tar))
    export_all(tmp_path / "out", tmp_path / "before", "webdataset")
    row = rows_in(tmp_path / "out")[2]
    flip(tar, row["image_offset"] + row["image_length"] // 2)
    with pytest.raises(MissingDataError, match=r"0\.tar"):
        export_all(tmp_path / "out", tmp_path, "webdataset")
    with pytest.raises(DamagedFileError, match=r"0\.tar"):
        feed_all(tmp_path / "out")


@pytest.mark.parametrize("form", FORMATS)
def test_a_changed_byte_of_a_pairs_file_stops_export_and_feed_and_names_it(tmp_path: Path, form: str) -> None:
    sequentially(embed_job(tmp_path / "out", write_tar(tmp_path / "0.tar", samples(6))))
    export_all(tmp_path / "out", tmp_path / "before", "webdataset")
    (path, *_) = sorted((tmp_path / "out/pairs").glob("*.parquet"))
    body = path.read_bytes()
    for position in (len(body) // 3, len(body) - 40, len(body) // 2):
        path.write_bytes(body)
        flip(path, position)
        values = {"dataset": str(tmp_path / "out"), "subset": "all", "output": str(tmp_path / form), "format": form}
        with pytest.raises(DamagedFileError, match=path.name):
            export(ExportJob.model_validate(values))
        with pytest.raises(DamagedFileError, match=path.name):
            feed_all(tmp_path / "out")


def test_an_export_of_an_earlier_version_is_left_as_it_is_and_opens_by_its_folder_after_another_run(
    tmp_path: Path,
) -> None:
    """Such exports keep their records in `export/`, and the records do not state the layout."""
    sequentially(embed_job(tmp_path / "out", write_tar(tmp_path / "0.tar", samples(6))))
    export_all(tmp_path / "out", tmp_path, "parquet")
    folder = tmp_path / "parquet"
    (folder / ".pairmill").rename(folder / "export")
    record = values_of(folder / "export/export.json")
    del record["layout"]
    (folder / "export/export.json").write_text(json.dumps({**record, "columns": record["columns"][:-1]}))
    before = (folder / "00000.parquet").read_bytes()
    values = {"dataset": str(tmp_path / "out"), "subset": "all", "output": str(folder), "format": "parquet"}
    assert export(ExportJob.model_validate(values)).written == 0
    assert (folder / "00000.parquet").read_bytes() == before
    assert len(load_dataset(folder, tmp_path)) == 6
    (folder / "00000.parquet").unlink()
    with pytest.raises(JobError, match="contains an export in the layout of an earlier version"):
        export(ExportJob.model_validate(values))


def test_datacomp_exports_use_the_names_that_its_scripts_expect(tmp_path: Path) -> None:
    from pairmill.pipeline.export.arrays import datacomp_names
    from pairmill.schemas.job.models import ModelConfig

    def names(*models: tuple[str, str | None, str]) -> list[str]:
        return datacomp_names([ModelConfig(name=name, pretrained=tag, alias=alias) for name, tag, alias in models])

    assert names(("ViT-B-32", "openai", ""), ("ViT-L-14", "openai", "big")) == ["clip_b32", "clip_l14"]
    assert names(("ViT-B-32-quickgelu", "laion400m_e31", "mine")) == ["clip_b32"]
    assert names(("ViT-B-32", "laion2b", "one"), ("ViT-B-32", "openai", "two")) == ["one", "clip_b32"]
    assert names(("ViT-L-14", "openai", "x"), ("tiny", None, "clip_l14")) == ["x", "clip_l14"]
    assert names(("tiny", None, "")) == ["tiny"]


def test_datacomps_basic_filter_gets_captions_as_text(tmp_path: Path) -> None:
    """The filter runs `df.text.apply(len)`, which fails if there is a null."""
    table = pa.table({"image": [picture(1), picture(2)]})
    pq.write_table(table, tmp_path / "in.parquet")
    sequentially(embed_job(tmp_path / "out", tmp_path / "in.parquet"))
    values = {"dataset": str(tmp_path / "out"), "name": "all", "steps": [{"where": "width > 0"}]}
    select(SelectJob.model_validate(values))
    values = {"dataset": str(tmp_path / "out"), "subset": "all", "output": str(tmp_path / "dc"), "format": "datacomp"}
    export(ExportJob.model_validate(values))
    import pandas

    frame = pandas.read_parquet(tmp_path / "dc/metadata/00000.parquet")
    assert frame.text.apply(len).tolist() == [0, 0]
    assert frame.original_width.tolist() == [320, 320]


def test_the_json_fields_of_a_corpus_become_the_same_columns_as_its_parquet_file(tmp_path: Path) -> None:
    """img2dataset writes the same values next to the pictures and in a Parquet file."""
    exif = json.dumps({"Image Make": "Canon", "EXIF ISOSpeedRatings": "100"})
    details = [
        {
            "caption": f"number {n}", "url": f"http://a.example/{n}.jpg", "key": f"{n:04d}", "status": "success",
            "error_message": None, "width": 320, "height": 240, "exif": exif, "sha256": f"{n:064x}",
            "licence": None if n == 1 else f"CC-{n}", "aesthetic": n if n % 2 else n + 0.5, "nsfw": n == 3,
            "big": (1 << 60) + n, "tags": ["a", "b"], "mixed": n if n % 2 else "text",
        }
        for n in range(6)
    ]  # fmt: skip
    members = []
    for n, detail in enumerate(details):
        late = {**detail, "late": "only here"} if n == 5 else detail
        members += [(f"{n:04d}.jpg", picture(n)), (f"{n:04d}.txt", detail["caption"].encode())]
        members += [(f"{n:04d}.json", json.dumps(late).encode())]
    write_tar(tmp_path / "0.tar", members)
    sequentially(embed_job(tmp_path / "tar/out", tmp_path / "0.tar"))
    (tmp_path / "pictures").mkdir()
    for name, data in members:
        (tmp_path / "pictures" / name).write_bytes(data)
    sequentially(embed_job(tmp_path / "folder/out", tmp_path / "pictures"))
    plain = [{name: value for name, value in detail.items() if name not in ("tags", "mixed")} for detail in details]
    table = pa.Table.from_pylist([{**row, "jpg": picture(n)} for n, row in enumerate(plain)])
    pq.write_table(table, tmp_path / "in.parquet")
    sequentially(embed_job(tmp_path / "parquet/out", tmp_path / "in.parquet"))
    tar, folder, parquet = (
        sorted(rows_in(tmp_path / name / "out"), key=lambda row: row["key"]) for name in ("tar", "folder", "parquet")
    )
    own = {"url", "caption", "status", "width", "height", "sha256"}
    carried = {name for name in parquet[0] if name.removeprefix("source_") in plain[0]} - own
    assert {"exif", "licence", "aesthetic", "nsfw", "big", "source_width", "source_status", "source_sha256"} <= carried
    for rows in (tar, folder):
        assert len(rows) == 6
        for row, other in zip(rows, parquet, strict=True):
            assert {name: row[name] for name in carried} == {name: other[name] for name in carried}
        assert [row["late"] for row in rows] == [None] * 5 + ["only here"]
        assert [row["mixed"] for row in rows] == ["text", "1", "text", "3", "text", "5"]
        assert json.loads(rows[0]["tags"]) == ["a", "b"]
        assert "source_caption" not in rows[0]
