"""Tests the listing of input files and the roles of their columns."""

import pickle
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.source.columns import map_columns, misfit
from pairmill.pipeline.source.files import InputFile, SourceError, inspect_parquet, kind_of, list_inputs
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.names import find_column
from pairmill.schemas.job.source import SourceConfig


def parquet(path: Path, **columns: object) -> InputFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return inspect_parquet(str(path), Files())


def facts(*files: InputFile, needs_license: bool = False, **settings: str) -> ColumnMapping:
    return map_columns(SourceConfig(paths=["-"], **settings), files, needs_license)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.parquet", "parquet"),
        ("a.b.CSV", "csv"),
        ("a.csv.gz", "csv"),
        ("a.tsv", "tsv"),
        ("a.jsonl", "jsonl"),
        ("a.ndjson.GZ", "jsonl"),
        ("a.json-lines", "jsonl"),
        ("a.JSON.gz", "json"),
        ("s3://bucket/a.txt.gz", "text"),
    ],
)
def test_the_format_depends_on_the_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize("name", ["a.xlsx", "a.gz", "a.parquet.gz", "parquet", "a.yaml"])
def test_an_unknown_extension_is_an_error_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(SourceError, match=r"known extensions are \.parquet, \.csv"):
        kind_of(name)


def test_inputs_are_listed_once_in_path_order_and_sorted_within_a_path(tmp_path: Path) -> None:
    for name in ("x/b.csv", "x/a.csv", "x/deep/c.CSV", "x/ignored.md", "y/z.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths = [str(tmp_path / "y/z.parquet"), str(tmp_path / "x"), str(tmp_path / "x" / "*.csv")]
    found = [
        str(Path(file).relative_to(tmp_path)) for file in list_inputs(paths, exclude="/elsewhere", files=Files()).files
    ]
    assert found == ["y/z.parquet", "x/a.csv", "x/b.csv", "x/deep/c.CSV"]


def test_the_output_folder_is_excluded_from_the_input(tmp_path: Path) -> None:
    for name in ("a.csv", "out/input/a.parquet", "out/plan/0.parquet", "output.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list_inputs([str(tmp_path)], exclude=str(tmp_path / "out"), files=Files()).files
    assert [Path(file).name for file in found] == ["a.csv", "output.csv"]
    with pytest.raises(SourceError, match="nothing but the output folder"):
        list_inputs([str(tmp_path / "out")], exclude=str(tmp_path / "out"), files=Files())


def test_a_text_file_beside_other_formats_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    (tmp_path / "a.parquet").touch()
    with pytest.raises(SourceError, match=r"readme\.txt beside other formats"):
        list_inputs([str(tmp_path)], exclude="/elsewhere", files=Files())


def test_json_is_input_only_without_other_formats(tmp_path: Path) -> None:
    for name in ("a.json", "deep/b.json.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list_inputs([str(tmp_path)], "/elsewhere", Files()).files
    assert [Path(file).name for file in found] == ["a.json", "b.json.gz"]
    (tmp_path / "c.jsonl").touch()
    assert [Path(file).name for file in list_inputs([str(tmp_path)], "/elsewhere", Files()).files] == ["c.jsonl"]
    assert (
        len(list_inputs([str(tmp_path / "*.json*")], "/elsewhere", Files()).files) == 2
    )  # a glob selects every file that it matches


@pytest.mark.parametrize(
    "names",
    [
        ["00000.tar", "00001.tar"],
        ["00000.tar", "00000_stats.json"],
        ["deep/a.JPG", "deep/a.txt", "deep/a.json"],
        ["a.png", "a.txt"],
        ["a.webp"],
    ],
)
def test_build_recommends_embed_for_pictures(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    first = str(tmp_path / names[0])
    for path in (str(tmp_path), first, f"{first[:-3]}*"):
        with pytest.raises(SourceError, match=rf"contains pictures, such as {first}.*use pairmill embed"):
            list_inputs([path], "/elsewhere", Files())


def test_the_lists_in_an_output_of_img2dataset_are_read_despite_its_tars(tmp_path: Path) -> None:
    for name in ("00000.tar", "00000.parquet", "00000_stats.json"):
        (tmp_path / name).touch()
    assert [Path(file).name for file in list_inputs([str(tmp_path)], "/elsewhere", Files()).files] == ["00000.parquet"]


@pytest.mark.parametrize("pictures", [b"\xff\xd8", {"bytes": b"\xff\xd8", "path": None}])
def test_build_recommends_embed_for_parquet_with_pictures(tmp_path: Path, pictures: object) -> None:
    with pytest.raises(SourceError, match=r"For the pictures in column 'photo', use pairmill embed"):
        facts(parquet(tmp_path / "a.parquet", photo=[pictures], caption=["c"]))


def test_build_recommends_embed_for_the_pictures_that_a_metadata_table_describes(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"use: pairmill embed {tmp_path} OUT"):
        facts(parquet(tmp_path / "metadata.parquet", file_name=["a.jpg"], text=["a"]))


def test_missing_input_is_an_error_that_names_the_path() -> None:
    with pytest.raises(SourceError, match=r"source\.paths: no input found at /no/such/place"):
        list_inputs(["/no/such/place"], exclude="/elsewhere", files=Files())


def test_a_folder_without_lists_is_an_error_that_names_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.orc").touch()
    with pytest.raises(
        SourceError, match=rf"no input found at {tmp_path}: {tmp_path}/a.orc is in no format that is read"
    ):
        list_inputs([str(tmp_path)], "/nowhere", Files())


@pytest.mark.parametrize("cut", [0, 3, 100])
def test_a_half_written_parquet_file_is_an_error_that_names_it(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "half.parquet"
    pq.write_table(pa.table({"url": ["u"] * 1000}), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SourceError, match=r"half\.parquet: not a complete Parquet file"):
        inspect_parquet(str(path), Files())


def test_a_column_is_found_by_its_exact_name_or_a_unique_match() -> None:
    assert find_column(["URL", "url"], "url") == "url"
    assert find_column(["URL", "text"], "url") == "URL"
    assert find_column([" Url "], "url") == " Url "
    assert find_column(["URL", "Url"], "url") is None


@pytest.mark.parametrize(
    "name", ["image link", "Image Link", "IMAGE-LINK", " image_link ", "Image - Link", "image__link"]
)
def test_the_guess_ignores_blanks_hyphens_and_case(tmp_path: Path, name: str) -> None:
    found = facts(parquet(tmp_path / "a.parquet", **{name: ["u"], "Alt Text": ["c"], "linked": ["x"]}))
    assert (found.url_column, found.caption_column) == (name, "Alt Text")


def test_the_closest_name_wins_and_ambiguous_names_do_not_match() -> None:
    assert find_column(["image link", "IMAGE_LINK"], "image_link") == "IMAGE_LINK"
    assert find_column(["image link", "image-link"], "image_link") is None


def test_columns_are_guessed_in_a_fixed_order(tmp_path: Path) -> None:
    found = facts(parquet(tmp_path / "a.parquet", title=["t"], IMAGE_URL=["u"], TEXT=["c"], Url=["u"]))
    assert (found.url_column, found.caption_column) == ("Url", "TEXT")
    assert found.extra_columns == ("title", "IMAGE_URL")
    assert not facts(parquet(tmp_path / "b.parquet", url=["u"])).has_captions


def test_other_columns_are_carried_and_renamed_on_collision(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", url=["u"], similarity=[0.5], WIDTH=[1], STATUS=["x"], width=[2], tags=[[1]])
    found = facts(file, sha256_column="STATUS")
    assert found.extra.names == ["source_similarity", "source_WIDTH", "source_STATUS", "source_source_width", "tags"]
    assert found.extra.types == [pa.float64(), pa.int64(), pa.string(), pa.int64(), pa.list_(pa.int64())]
    assert found.output_name(found.sha256_column) == "source_STATUS"


def test_the_mapping_is_unchanged_by_json_and_pickle(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", url=["u"], text=["c"], d=pa.array(["x"]).dictionary_encode(), when=[None])
    found = facts(file)
    assert ColumnMapping.from_json(found.to_json()) == found
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301


@pytest.mark.parametrize("setting", ["url", "caption", "uid", "sha256", "license"])
def test_a_missing_column_that_the_job_names_is_an_error_that_lists_the_columns(tmp_path: Path, setting: str) -> None:
    file = parquet(tmp_path / "a.parquet", url=["u"], text=["c"])
    with pytest.raises(SourceError, match=rf"a\.parquet: no column 'x' \(source\.{setting}_column\); it has 'url', 't"):
        facts(file, **{f"{setting}_column": "x"})


def test_without_a_url_column_the_error_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"it has 'a'\. Set source\.url_column"):
        facts(parquet(tmp_path / "a.parquet", a=["u"]))


def test_a_column_cannot_have_two_roles(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", url=["u"], text=["c"])
    with pytest.raises(SourceError, match="must differ"):
        facts(file, uid_column="url")
    with pytest.raises(SourceError, match="already used"):
        facts(file, license_column="text")


def test_the_license_column_is_guessed_only_if_a_rule_needs_it(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", url=["u"], Licence=["c"])
    assert facts(file).license_column is None
    assert facts(file, needs_license=True).license_column == "Licence"
    with pytest.raises(SourceError, match=r"Set source\.license_column"):
        facts(parquet(tmp_path / "b.parquet", url=["u"]), needs_license=True)


@pytest.mark.parametrize("column", [[1], [{"a": 1}], [[["deep"]]]])
def test_captions_that_are_not_text_are_an_error(tmp_path: Path, column: list[object]) -> None:
    with pytest.raises(SourceError, match=r"column 'caption' is .*, not text; set source\.caption_column"):
        facts(parquet(tmp_path / "a.parquet", url=["u"], caption=column))


@pytest.mark.parametrize(
    "data_type",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.null(),
        pa.list_(pa.string()),
    ],
)
def test_captions_can_have_any_text_type(tmp_path: Path, data_type: pa.DataType) -> None:
    assert facts(parquet(tmp_path / "a.parquet", url=["u"], caption=pa.nulls(1, data_type))).has_captions


def test_columns_of_all_files_are_unified(tmp_path: Path) -> None:
    one = parquet(tmp_path / "1.parquet", url=["u"], text=["c"], a=pa.nulls(1), w=[1], s=["x"])
    two = parquet(tmp_path / "2.parquet", URL=["u"], TEXT=["c"], a=[[1.5]], w=[0.5], b=[uuid.uuid4().bytes])
    found = facts(one, two)
    types = [pa.list_(pa.float64()), pa.float64(), pa.string(), pa.binary()]
    assert found.extra == pa.schema(list(zip(["a", "w", "s", "b"], types, strict=True)))


def test_incompatible_types_are_an_error_that_names_both_files(tmp_path: Path) -> None:
    one = parquet(tmp_path / "1.parquet", url=["u"], a=["x"])
    two = parquet(tmp_path / "2.parquet", url=["u"], a=[1])
    with pytest.raises(SourceError, match=r"column 'a' is string in .*1\.parquet but int64 in .*2\.parquet"):
        facts(one, two)


@pytest.mark.parametrize("missing", ["url", "text"])
def test_a_file_without_url_or_caption_is_an_error(tmp_path: Path, missing: str) -> None:
    one = parquet(tmp_path / "1.parquet", url=["u"], text=["c"])
    two = parquet(tmp_path / "2.parquet", **{name: ["x"] for name in ("url", "text", "other") if name != missing})
    with pytest.raises(SourceError, match=rf"2\.parquet: no column '{missing}', which other files have"):
        facts(one, two)


def test_files_without_rows_are_ignored(tmp_path: Path) -> None:
    empty = parquet(tmp_path / "1.parquet", nothing=pa.nulls(0))
    assert facts(empty, parquet(tmp_path / "2.parquet", url=["u"])).url_column == "url"
    with pytest.raises(SourceError, match="has no rows"):
        facts(empty)


def test_two_columns_with_the_same_name_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["u"]), pa.array(["v"])], ["url", "url"]), path)
    with pytest.raises(SourceError, match="share a name"):
        inspect_parquet(str(path), Files())


def test_a_file_added_later_must_fit_the_plan(tmp_path: Path) -> None:
    known = facts(parquet(tmp_path / "1.parquet", url=["u"], text=["c"], a=[1], b=["x"]))
    assert misfit(known, parquet(tmp_path / "2.parquet", url=["u"], text=["c"])) is None
    assert misfit(known, parquet(tmp_path / "3.parquet", url=["u"], text=["c"], a=pa.array([1], pa.int8()))) is None
    assert "column 'new' is new" in str(misfit(known, parquet(tmp_path / "4.parquet", url=["u"], text=["c"], new=[1])))
    assert "'a' is double" in str(misfit(known, parquet(tmp_path / "5.parquet", url=["u"], text=["c"], a=[0.5])))
    assert "no column 'text'" in str(misfit(known, parquet(tmp_path / "6.parquet", url=["u"])))
