"""Invariant: text beside a picture is read in any usual form, or the row is rejected; no row is `ok` without it."""

import codecs
import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.corpus.index import IndexRow
from pairmill.pipeline.source.corpus.sidecar import TextRules, TextUse
from pairmill.pipeline.source.corpus.tars import tar_rows
from pairmill.pipeline.source.describe import describe_plan
from pairmill.pipeline.source.files import SourceError
from pairmill.pipeline.source.plan import load_plan, make_plan
from pairmill.pipeline.source.rows import ShardReader
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import shards_from_table
from pairmill.schemas.record import JobRecord
from tests.tars import write_tar

ENCODINGS = ["utf-8", "latin-1", "cp1252", "utf-16", "utf-16-le", "shift_jis"]


def indexed(folder: Path, *members: tuple[str, bytes], **rules: Any) -> IndexRow:
    """The index row of one picture and the text files beside it."""
    (row,) = tar_rows(str(write_tar(folder / "a.tar", [("0.jpg", b"x"), *members])), Files(), None, TextRules(**rules))
    return row


def shard_rows(output: Path, source: Path, **settings: Any) -> list[dict[str, object]]:
    """The rows that a plan of `source` reads."""
    values = {"source": {"paths": [str(source)], "kind": "corpus", **settings}, "output": str(output)}
    store = Store(str(output))
    make_plan(JobRecord(BuildJob.model_validate({**values, "models": [{"name": "tiny"}]}), "f" * 32), store)
    plan = load_plan(store)
    reader = ShardReader(store, plan.mapping)
    rows = [row for shard in shards_from_table(plan.shards) for row in reader.read(shard).to_pylist()]
    reader.close()
    return rows


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "a dog", "é", " "]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["caption", "text", "x"]), inner),
    max_leaves=6,
)


def texts_of(value: Any) -> list[str]:
    """All strings in a JSON value that can be captions."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    parts = value if isinstance(value, list) else []
    if isinstance(value, dict):  # a blank caption still counts as the object's caption
        named = [value[name] for name in ("caption", "text") if value.get(name) is not None]
        parts = named or list(value.values())
    return [text for part in parts for text in texts_of(part)]


@given(st.sampled_from(["caption", "text", "TEXT", "captions", "Caption", "alt"]), json_values)
def test_a_caption_of_any_json_type_is_read_or_its_row_is_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    body = json.dumps({"width": 7, key: value}).encode()
    row = indexed(tmp_path_factory.mktemp("json"), ("0.json", body))
    found = [caption.decode() for caption in row.captions or () if caption]
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        assert [each for each in found if each.strip()] == texts_of(value)
    assert set(found) - {""} - {" "} <= set(texts_of(value))
    if row.caption_problem is None and not found:
        assert not texts_of(value)
    if isinstance(value, (bool, int, float)):
        assert "the caption is a" in str(row.caption_problem)


def is_named_or_text(item: Any) -> bool:
    """Whether an item of a top-level JSON list must count as a caption, whatever the other items are."""
    if isinstance(item, dict):
        return any(isinstance(item.get(name), str) and item[name].strip() for name in ("caption", "text"))
    return isinstance(item, str) and bool(item.strip())


@given(json_values.filter(lambda value: not isinstance(value, dict)))
@example([{"caption": "a dog"}, {"caption": "a cat"}])
@example(["a dog", {"box": [1, 2]}])
@example([{"box": [1, 2]}])
def test_captions_outside_an_object_are_read_or_their_row_is_refused(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    use = TextUse()
    row = indexed(tmp_path_factory.mktemp("json"), ("0.json", json.dumps(value).encode()), use=use)
    found = [caption.decode() for caption in row.captions or () if caption]
    assert set(found) - {""} - {" "} <= set(texts_of(value))
    if row.caption_problem is None and not any(caption.strip() for caption in found):
        assert not any(map(is_named_or_text, value if isinstance(value, list) else [value]))
    if row.caption_problem is None and row.captions is None:
        assert use.uncaptioned == 1


WESTERN = [sign for sign in bytes(range(256)).decode("cp1252", "ignore") if unicodedata.category(sign) != "Cc"]


@given(st.text(st.sampled_from(WESTERN), min_size=1), st.sampled_from(ENCODINGS))
def test_text_is_read_if_its_encoding_is_given_and_never_decoded_wrongly_otherwise(
    tmp_path_factory: pytest.TempPathFactory, text: str, encoding: str
) -> None:
    try:
        body = text.encode(encoding)
    except UnicodeEncodeError:
        return
    marks = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    assume(encoding == "utf-16" or not body.startswith(marks))  # such a byte order mark overrides the encoding
    assume(body.decode(encoding) == text)  # false for the yen sign in Shift JIS
    folder = tmp_path_factory.mktemp("text")
    (named,) = indexed(folder, ("0.txt", body), encoding=encoding).captions or (None,)
    assert named == text.encode()
    as_json = json.dumps({"caption": text}, ensure_ascii=False)
    row = indexed(folder, ("0.json", as_json.encode(encoding)), encoding=encoding)
    assert row.captions == (text.encode(),)
    plain = indexed(folder, ("0.txt", body))
    if plain.caption_problem is None:  # bytes that are not UTF-8 are refused only when the shard is read
        assert plain.caption == (text.encode() if encoding == "utf-16" else body)
    else:
        assert b"\0" in body


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_not_part_of_a_caption(tmp_path: Path, encoding: str) -> None:
    row = indexed(tmp_path, ("0.txt", "a dög".encode(encoding)))
    assert row.captions == ("a dög".encode(),)


@settings(max_examples=max(settings.default.max_examples // 4, 1))  # each example makes a plan
@given(st.lists(json_values, min_size=1, max_size=4), st.booleans())
def test_a_caption_in_a_list_is_text_or_its_row_is_refused(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], is_array: bool
) -> None:
    """The oracle is whether each value is text, another scalar, or a list of such values."""
    folder = tmp_path_factory.mktemp("list")
    objects = [{"uid": f"{number:032x}", "caption": value} for number, value in enumerate(values)]
    text = json.dumps(objects) if is_array else "\n".join(map(json.dumps, objects))
    (folder / ("a.json" if is_array else "a.jsonl")).write_text(text)
    rows = shard_rows(folder / "out", folder / ("a.json" if is_array else "a.jsonl"), caption_column="caption")
    refused = [row["status_detail"] for row in rows if row["status"] == "row_malformed"]
    parts = [value if isinstance(value, list) else [value] for value in values]
    structured = [part for part in parts if any(isinstance(each, (dict, list)) for each in part)]
    assert len(refused) == len(structured)
    assert all(detail.startswith("the caption is a") for detail in refused)
    assert not any(row["caption"] and row["caption"].startswith(("{", "[")) for row in rows)


@pytest.mark.parametrize("caption", [math.nan, [math.nan], ["a dog", math.nan]])
@pytest.mark.parametrize("is_corpus", [False, True])
def test_nan_is_a_missing_caption_like_null(tmp_path: Path, is_corpus: bool, caption: Any) -> None:
    """`pandas.read_json` and `datasets` read NaN in the same way."""
    written = json.dumps({"uid": "0" * 32, "caption": caption})
    found = []
    for number, text in enumerate((written, written.replace("NaN", "null"))):
        if is_corpus:
            row = indexed(tmp_path, ("0.json", text.encode()))
            found.append([row.captions, row.caption_problem])
        else:
            (tmp_path / f"{number}.jsonl").write_text(text)
            rows = shard_rows(tmp_path / f"out{number}", tmp_path / f"{number}.jsonl", caption_column="caption")
            found.append([(row["caption"], row["status"]) for row in rows])
    assert "NaN" not in str(found)
    assert found[0] == found[1]


SHAPES: list[tuple[list[tuple[str, bytes]], list[str] | None]] = [
    ([("0.txt", b"a dog")], ["a dog"]),
    ([("0.json", b'{"caption": ["a", "b"]}')], ["a", "b"]),
    ([("0.json", b'["a", "b"]')], ["a", "b"]),
    ([("0.json", b'"a"')], ["a"]),
    ([("0.json", b'{"captions": [{"caption": "a"}, {"caption": "b"}]}')], ["a", "b"]),
    ([("0.json", b'{"caption": {"text": "a"}}')], ["a"]),
    ([("0.json", b'{"caption": {"caption": "", "text": "a"}}')], ["a"]),
    ([("0.json", b'{"caption": null, "text": "a"}')], ["a"]),
    ([("0.json", b'{"caption": NaN, "text": "a"}')], ["a"]),
    ([("0.txt", b" \n"), ("0.json", b'{"caption": "a"}')], ["a"]),
    ([("0.txt", b"a dog"), ("0.json", b"{")], ["a dog"]),
    ([("0.json", b"{"), ("0.txt", b"a dog")], ["a dog"]),
    ([("0.json", b'{"a": 1}' + b" " * (5 << 20)), ("0.txt", b"a dog")], ["a dog"]),
    ([("0.meta.json", b'{"width": 7}'), ("0.json", b'{"caption": "a"}')], ["a"]),
    ([("0.json", "\ufeff".encode() + b'{"caption": "a"}')], ["a"]),
    ([("0.json", b"{")], None),
    ([("0.json", b'{"caption": "caf\xe9"}')], None),
    ([("0.json", b'{"caption": 7}')], None),
    ([("0.json", b'{"a": 1}' + b" " * (5 << 20))], None),
    ([("0.txt", b"a" * (2 << 20))], None),
    ([("0.txt", b"a\0 \0d\0o\0g\0")], None),
    ([("0.txt", b"caf\xe9")], None),
]


@pytest.mark.parametrize(("members", "captions"), SHAPES)
@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_each_usual_form_of_captions_becomes_rows_or_a_refusal(
    tmp_path: Path, kind: str, members: list[tuple[str, bytes]], captions: list[str] | None
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    if kind == "tar":
        write_tar(source / "a.tar", [("0.jpg", b"x"), *members])
    else:
        for name, body in [("0.jpg", b"x"), *members]:
            (source / name.replace("0.meta.json", "0.JSON")).write_bytes(body)
    rows = shard_rows(tmp_path / "out", source)
    if captions is None:
        assert [row["status"] for row in rows] == ["caption_invalid"]
    else:
        assert [(row["status"], row["caption"], row["caption_index"]) for row in rows] == [
            ("ok", caption, index) for index, caption in enumerate(captions)
        ]


@pytest.mark.parametrize(
    ("column", "members", "caption"),
    [
        ("description", [("0.json", b'{"caption": "a", "description": "b"}'), ("0.txt", b"c")], "b"),
        ("Description", [("0.json", b'{"caption": "a", "description": "b"}')], "b"),
        ("prompt", [("0.prompt", b"b"), ("0.txt", b"c")], "b"),
        ("txt", [("0.json", b'{"caption": "a"}'), ("0.txt", b"b")], "b"),
        ("description", [("0.json", b'{"description": null}'), ("0.txt", b"c")], "c"),
    ],
)
def test_the_caption_column_of_a_tar_is_a_json_key_or_a_file_extension(
    tmp_path: Path, column: str, members: list[tuple[str, bytes]], caption: str
) -> None:
    source = write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), *members])
    (row,) = shard_rows(tmp_path / "out", source, caption_column=column)
    assert (row["status"], row["caption"]) == ("ok", caption)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"caption_column": "wrong"}, r"no \.json beside a picture has the key 'wrong', .*the keys are 'caption', 'w'"),
        ({"license_column": "w"}, r"source\.license_column: tars and folders have no columns"),
        ({"image_column": "jpg"}, r"source\.image_column: tars and folders have no columns"),
    ],
)
def test_a_setting_that_does_not_apply_to_tars_is_an_error(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    source = write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.json", b'{"caption": "a", "w": 1}'), ("0.txt", b"b")])
    with pytest.raises(SourceError, match=message):
        shard_rows(tmp_path / "out", source, **settings)


@pytest.mark.parametrize(
    "pictures", [pa.array([{"bytes": b"x" * 99, "path": "0.jpg"}]), pa.array([b"x" * 99], pa.binary(99))]
)
def test_captions_of_a_webdataset_converted_to_parquet_are_found(tmp_path: Path, pictures: pa.Array) -> None:
    """Hugging Face names the columns after the extensions of the members in the tar."""
    (tmp_path / "in").mkdir()
    columns = {"jpg": pictures, "txt": ["a dog"], "__key__": ["0"], "": [7]}
    pq.write_table(pa.table(columns), tmp_path / "in" / "a.parquet")
    (row,) = shard_rows(tmp_path / "out", tmp_path / "in")
    assert (row["caption"], row["status"], row["url"], row["image_length"]) == ("a dog", "ok", None, 99)
    values = {"source": {"paths": ["in"], "kind": "corpus"}, "output": "out", "models": [{"name": "tiny"}]}
    told = describe_plan(load_plan(Store(str(tmp_path / "out"))), BuildJob.model_validate(values))
    assert "pictures from column 'jpg'; captions from column 'txt'" in told


def test_json_without_a_usual_caption_key_is_reported_with_its_keys(tmp_path: Path) -> None:
    members = [("0.jpg", b"x"), ("0.json", b'{"motto": "a", "w": 1, "caption": null}')]
    captioned = [("2.jpg", b"z"), ("2.json", b'{"caption": "b", "url": "http://a"}')]
    source = write_tar(tmp_path / "a.tar", [*members, ("1.jpg", b"y"), *captioned])
    rows = shard_rows(tmp_path / "out", source)
    assert [(row["status"], row["caption"]) for row in rows] == [("ok", None), ("ok", None), ("ok", "b")]
    plan = load_plan(Store(str(tmp_path / "out")))
    told = (
        "1 row with JSON or a metadata table entry, but no caption under the usual keys; to use another key, set "
        "source.caption_column (keys found: 'motto', 'w')"
    )
    assert told in describe_plan(plan, plan.job)


def test_url_and_uid_columns_of_a_tar_are_keys_of_its_json(tmp_path: Path) -> None:
    body = json.dumps({"url": "http://no", "src": "http://e.org/1", "id": "AB" * 16, "caption": "a"}).encode()
    source = write_tar(
        tmp_path / "a.tar", [("0.jpg", b"x"), ("0.json", body), ("1.jpg", b"y"), ("1.json", b'{"id": 7}')]
    )
    first, second = shard_rows(tmp_path / "out", source, url_column="src", uid_column="id")
    assert (first["url"], first["uid"], first["status"]) == ("http://e.org/1", "ab" * 16, "ok")
    assert second["status"] == "row_malformed"
