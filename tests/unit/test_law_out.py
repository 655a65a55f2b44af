"""Output invariant, part one: every reader sees the scored pixels in an exported picture, the JSON in tars is valid,
and no reader accepts a changed byte as data.
"""

import base64
import io
import json
import math
import random
import re
import tarfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.integrity import DamagedFileError, check_file
from pairmill.pipeline.dataset.parquet import read_table, write_table
from pairmill.pipeline.dataset.webdataset_tar import MEMBER_COLUMNS, has_map, read_tar, write_tar
from pairmill.pipeline.export.arrays import ClipRetrieval, DataComp
from pairmill.pipeline.export.formats import Format, ParquetFiles, Part, WebDataset
from pairmill.pipeline.export.hf_features import expressible, features, yaml_features
from pairmill.pipeline.export.readme import readme
from pairmill.pipeline.image.decode import ImageError
from pairmill.pipeline.image.plain import plain_picture
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.pairs import embedding_type, pairs_schema, score_columns

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
PROCESSOR = ImageProcessor(ImagesConfig())

Pixels = npt.NDArray[np.uint8]

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")


def pillow(body: bytes) -> Pixels:
    with Image.open(io.BytesIO(body)) as opened:
        return np.asarray(opened.convert("RGB"))


def hugging_face(body: bytes) -> Pixels:
    """Decode like `datasets.Image`, which applies the EXIF orientation."""
    with Image.open(io.BytesIO(body)) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))


def opencv(body: bytes) -> Pixels:
    return np.asarray(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


def torch_vision(body: bytes) -> Pixels:
    data = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    pixels = torchvision.io.decode_image(data, torchvision.io.ImageReadMode.RGB)
    return np.asarray(pixels.permute(1, 2, 0).numpy())


READERS = (pillow, hugging_face, opencv, torch_vision)


def check_picture(body: bytes) -> bool:
    """Check that every reader sees the scored pixels. Returns whether the exported bytes are the original bytes."""
    scored = PROCESSOR.pixels(body)
    exported = plain_picture(body, PROCESSOR)
    for reader in READERS:
        assert np.array_equal(reader(exported), scored), reader.__name__
    return exported == body


def test_every_reader_sees_the_scored_pixels_of_all_awkward_pictures() -> None:
    paths = [path for path in sorted((SHARED_DATA / "awkward").rglob("*")) if path.suffix not in ("", ".csv")]
    kept = []
    for path in paths:
        body = path.read_bytes()
        try:
            PROCESSOR.pixels(body)
        except ImageError:
            continue  # a picture that is never scored is never exported
        kept.append(check_picture(body))
    assert len(paths) > 90
    assert len(kept) > 60
    assert 15 < sum(kept) < 40  # the plain JPEGs


def other_profile() -> bytes:
    """An sRGB profile with red and green swapped, which no reader may ignore."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")


SAVED = {  # format -> modes that the format supports
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "L", "P"),
    "TIFF": ("RGB", "RGBA", "L", "CMYK", "I;16"),
}


@st.composite
def encoded_pictures(draw: st.DrawFn) -> bytes:
    """Small pictures of all formats, modes and orientations, with and without profile, transparency and metadata."""
    form = draw(st.sampled_from(sorted(SAVED)))
    mode = draw(st.sampled_from(SAVED[form]))
    size = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    noise = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (size[1], size[0], 4), np.uint8)
    picture = Image.fromarray(noise)
    if mode == "I;16":
        picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    elif mode == "P":
        picture = picture.convert("RGB").quantize(16)
    elif mode != "RGBA":
        picture = picture.convert("RGB").convert(mode)
    options: dict[str, object] = {}
    orientation = draw(st.sampled_from([None, *range(1, 9)]))
    if orientation is not None and form in ("JPEG", "PNG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif.tobytes() if form != "TIFF" else exif
    if draw(st.booleans()) and mode in ("RGB", "RGBA") and form in ("JPEG", "PNG", "WEBP"):
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        options["icc_profile"] = draw(st.sampled_from([srgb, other_profile()]))
    if draw(st.booleans()) and form == "PNG" and mode in ("P", "L", "RGB"):
        options["transparency"] = (3, 2, 1) if mode == "RGB" else 3
    if form == "WEBP":
        options["lossless"] = draw(st.booleans())
    if draw(st.booleans()) and form in ("JPEG", "GIF"):
        options["comment"] = b"a comment"
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


LOSSLESS_JPEG = bytes.fromhex(
    "ffd8ffc40017000101010100000000000000000000000005030608ffc3000b080006000801001100ffda0008010000060000e7fad6b5ad6ba8"
    "5145145145350a28a28a28a6a14514514514d428a28a28a29a851451451450ffd9"
)
"""Grayscale, 8 x 6 pixels: 0, 5, 10, ... OpenCV refuses it."""


def test_every_reader_sees_the_pixels_of_a_lossless_jpeg() -> None:
    assert np.array_equal(PROCESSOR.pixels(LOSSLESS_JPEG)[..., 0].ravel(), np.arange(48) * 5)
    assert not check_picture(LOSSLESS_JPEG)


@settings(deadline=None)
@given(encoded_pictures())
def test_every_reader_sees_the_scored_pixels_of_generated_pictures(body: bytes) -> None:
    check_picture(body)


@settings(deadline=None)
@given(encoded_pictures(), st.integers(0, 1 << 30), st.binary(min_size=1, max_size=3))
def test_damaged_pictures_that_could_be_scored_are_readable_after_export(body: bytes, at: int, junk: bytes) -> None:
    at %= len(body)
    body = body[:at] + junk + body[at + len(junk) :]
    try:
        scored = PROCESSOR.pixels(body)
    except ImageError:
        return
    exported = plain_picture(body, PROCESSOR)
    for reader in (pillow, hugging_face):
        assert np.array_equal(reader(exported), scored), reader.__name__


@pytest.mark.parametrize(("mode", "options"), [("RGB", {}), ("L", {}), ("P", {}), ("RGB", {"dpi": (72, 72)})])
def test_plain_files_are_exported_byte_for_byte(mode: str, options: dict[str, object]) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8))
    picture = picture.quantize(250) if mode == "P" else picture.convert(mode)
    for form in ("JPEG", "PNG", "WEBP"):
        if form == "PNG" or mode != "P":
            file = io.BytesIO()
            picture.save(file, form, **options)
            assert check_picture(file.getvalue()), form


JSON_TYPES = [pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.string(), pa.large_string()]
JSON_TYPES += [pa.bool_(), pa.binary(), pa.binary(3), pa.date32(), pa.timestamp("ns", "UTC"), pa.time64("us")]
JSON_TYPES += [pa.duration("s"), pa.list_(pa.duration("ns")), pa.decimal128(12, 2), pa.null()]
JSON_TYPES += [pa.list_(pa.float32()), pa.list_(pa.int8(), 2)]
JSON_TYPES += [pa.struct([("a b", pa.float64()), ("c", pa.list_(pa.string()))]), pa.map_(pa.string(), pa.int32())]
JSON_TYPES += [pa.dictionary(pa.int32(), pa.string()), pa.large_list(pa.struct([("x", pa.int16())]))]
JSON_TYPES += [pa.time64("ns"), pa.list_(pa.timestamp("s")), pa.struct([("t", pa.time64("ns")), ("d", pa.date32())])]
JSON_TYPES += [pa.map_(pa.string(), pa.timestamp("ms")), pa.list_(pa.map_(pa.string(), pa.int8())), pa.decimal32(6, 2)]
JSON_TYPES += [pa.uuid(), pa.json_(), pa.bool8(), pa.fixed_shape_tensor(pa.float32(), [2])]
JSON_TYPES += [pa.list_(pa.decimal64(12, 2)), pa.struct([("m", pa.map_(pa.string(), pa.decimal32(6, 2)))])]
JSON_TYPES += [pa.map_(pa.string(), pa.time64("ns")), pa.map_(pa.string(), pa.map_(pa.string(), pa.date32()))]


def values_of(kind: pa.DataType, rng: random.Random) -> Any:  # noqa: C901  # one line per type
    if rng.random() < 0.2 or pa.types.is_null(kind):
        return None
    if pa.types.is_dictionary(kind):
        return values_of(kind.value_type, rng)
    if pa.types.is_map(kind):
        return [(rng.choice("ab") + str(n), values_of(kind.item_type, rng)) for n in range(rng.randrange(3))]
    if pa.types.is_struct(kind):
        return {field.name: values_of(field.type, rng) for field in kind}
    if pa.types.is_fixed_size_list(kind):
        return [1, 2]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [values_of(kind.value_type, rng) for _ in range(rng.randrange(3))]
    if pa.types.is_floating(kind):
        return rng.choice([0.5, -1.0, 2.0**-14, 65504.0, math.nan, math.inf, -math.inf])
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return rng.choice(["", "é\u2028\x00", '"quoted"\n', "日本"])
    if pa.types.is_boolean(kind):
        return rng.random() < 0.5
    if pa.types.is_fixed_size_binary(kind):
        return b"\x00\xff\x01" + bytes(kind.byte_width - 3)
    if pa.types.is_binary(kind):
        return rng.choice([b"", b"\xff\x00"])
    if pa.types.is_decimal(kind):
        return Decimal("-12.30")
    if pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.unit != "ns"):
        return rng.choice([1, 5_000_000, 2_000_000_000])  # includes years that Python does not support
    if not pa.types.is_integer(kind):
        return 1
    bits, is_signed = kind.bit_width, pa.types.is_signed_integer(kind)
    extremes = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (1 << bits - 1, (1 << bits) - 1)
    return rng.choice([0, 127, *extremes])


def table_of(names: list[str], seed: int, rows: int = 6) -> pa.Table:
    """A table with a column of a random type under each name."""
    rng = random.Random(seed)
    return pa.table({name: column_of(rng.choice(JSON_TYPES), rng, rows) for name in names})


def column_of(kind: pa.DataType, rng: random.Random, rows: int = 6) -> pa.Array:
    stored = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    values = [values_of(stored, rng) for _ in range(rows)]
    array = pa.array(
        [np.float16(v) if v is not None else None for v in values] if kind == pa.float16() else values, stored
    )
    return pa.ExtensionArray.from_storage(kind, array) if stored != kind else array


def has_times_or_maps(kind: pa.DataType) -> bool:
    inner = (kind.field(index).type for index in range(kind.num_fields))
    return pa.types.is_temporal(kind) or pa.types.is_map(kind) or any(has_times_or_maps(each) for each in inner)


NAMES = st.lists(
    st.one_of(
        st.sampled_from(
            ["image_embedding", "export_row", "export_shard", "a.b", "a", "A", "list", "element", "licence"]
        ),
        st.text(st.characters(exclude_categories=["Cs"], min_codepoint=1), min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=5,
    unique_by=str.lower,
)


@given(NAMES, st.integers(0, 1 << 30))
def test_carried_columns_of_any_name_and_type_become_strictly_valid_json_with_the_same_values(
    names: list[str], seed: int
) -> None:
    carried = table_of([name for name in names if name not in MEMBER_COLUMNS and name != "caption_clean"], seed)
    own = {name: pa.array([f"{n:032x}" for n in range(6)]) for name in (*MEMBER_COLUMNS, "caption_clean")}
    pairs = pa.table({**own, **dict(zip(carried.column_names, carried.columns, strict=True))})
    file = io.BytesIO()
    write_tar(file, pairs, [b"\xff\xd8\xff"] * 6, carried=carried.column_names)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    members = {
        name: file.getvalue()[offset : offset + length]
        for name, offset, length in read_tar(io.BytesIO(file.getvalue()))
    }
    for row in range(6):
        found = json.loads(members[f"{row:032x}.json"], parse_constant=refuse)
        assert list(found) == [*MEMBER_COLUMNS, *carried.column_names]
        for name in carried.column_names:
            kind, stored = carried.schema.field(name).type, carried[name]
            text = json.loads(found[name]) if has_map(kind) and found[name] is not None else found[name]
            if kind not in (pa.uuid(), pa.bool8()):
                stored = stored.cast(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else stored
                assert from_json(text, stored.type) == in_python(stored[row])


NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def from_json(value: Any, kind: pa.DataType) -> Any:  # one line per type
    """Decode a JSON value of a type into the form that `in_python` returns."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: from_json(value[field.name], field.type) for field in kind}
    if pa.types.is_map(kind):
        return [(from_json(key, kind.key_type), from_json(item, kind.item_type)) for key, item in value]
    if pa.types.is_nested(kind) and not pa.types.is_dictionary(kind):
        return [from_json(item, kind.value_type) for item in value]
    if pa.types.is_decimal(kind):
        return Decimal(value)
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return base64.b64decode(value)
    if pa.types.is_duration(kind):
        number, unit = value.split()
        return int(number) * NANOSECONDS[unit]
    if pa.types.is_temporal(kind):
        whole, _, digits = value.replace(" ", "T").removesuffix("Z").removesuffix("+00:00").partition(".")
        return whole, digits.rstrip("0")
    return value


def in_python(value: pa.Scalar) -> Any:
    """The Python value of a scalar, with times as text, durations in nanoseconds, and NaN and infinity as None."""
    kind = value.type
    if not value.is_valid:
        return None
    if pa.types.is_struct(kind):
        return {name: in_python(item) for name, item in value.items()}
    if pa.types.is_map(kind):
        return [(in_python(pair["key"]), in_python(pair["value"])) for pair in value.values]
    if pa.types.is_dictionary(kind):
        return in_python(value.as_py() if isinstance(value.as_py(), pa.Scalar) else pa.scalar(value.as_py()))
    if pa.types.is_nested(kind):
        return [in_python(item) for item in value]
    if pa.types.is_duration(kind):
        return value.value * NANOSECONDS[kind.unit]
    if pa.types.is_temporal(kind):
        return from_json(pc.cast(value, pa.string()).as_py(), kind)
    found = value.as_py()
    return None if isinstance(found, float) and not math.isfinite(found) else found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(deadline=None, max_examples=settings.default.max_examples // 4)  # type: ignore[attr-defined]
@given(NAMES, st.integers(0, 1 << 30))
def test_hugging_face_reads_columns_of_any_name_and_type_with_the_exported_features(
    names: list[str], seed: int
) -> None:
    """The oracle is `datasets`, which parses the features and casts the table to them."""
    import datasets

    table = table_of(names, seed)
    plain = expressible(table)
    stated = {name: feature for name, feature in features(plain.schema).items() if name != "image" or "image" in names}
    parsed = datasets.Features.from_dict(stated)
    assert parsed.arrow_schema.names == table.column_names
    assert datasets.table.table_cast(plain, parsed.arrow_schema).num_rows == table.num_rows
    assert datasets.Features._from_yaml_list(yaml_features(table.schema)).keys() == parsed.keys()
    for name in table.column_names:
        kind = table.schema.field(name).type
        if isinstance(kind, pa.BaseExtensionType):
            assert plain[name].equals(table[name].cast(kind.storage_type).cast(plain[name].type))
        elif not has_times_or_maps(kind):
            assert repr(plain[name].to_pylist()) == repr(table[name].to_pylist())  # as text, because NaN != NaN


CARRIED = [str(kind) for kind in JSON_TYPES if kind != pa.uint64()]  # `datasets` cannot read 2^63 from JSON


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("webdataset", WebDataset([], has_captions=True, carried=CARRIED)),
        ("parquet", ParquetFiles(["tiny"])),
        ("clip-retrieval", ClipRetrieval("tiny", ["tiny"], has_captions=False)),
        ("datacomp", DataComp(["tiny"], ["tiny"], has_captions=False)),
    ],
)
def test_hugging_face_opens_the_folder_of_every_format_with_columns_of_all_types(
    name: str, form: Format, tmp_path: Path
) -> None:
    import datasets

    every = pa.table({str(kind): column_of(kind, random.Random(0)) for kind in JSON_TYPES})
    schema = pairs_schema(every.schema, [score_columns("tiny", 2)])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([np.float16(1)] * 12), type=embedding_type(2))
    texts = pa.array([f"{row:032x}" for row in range(6)])
    own = {"uid": texts, "caption_clean": texts, "image_embedding_tiny": vectors}
    columns = {field.name: own.get(field.name, pa.nulls(6, field.type)) for field in schema}
    rows = pa.table(columns | dict(zip(every.column_names, every.columns, strict=True))).select(form.columns(schema))
    part = Part("00000", rows, io.BytesIO(b"\xff\xd8\xff"), [(0, 3)] * 6)
    for path, write in form.files(part).items():
        (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name / path).open("wb") as file:
            write(file)
    if name != "parquet":
        sample = pa.schema([field for field in rows.schema if field.name != "caption_clean"])
        text = readme(name, [], sample if name == "webdataset" else None, ["jpg"])
        (tmp_path / name / "README.md").write_text(text)
    loaded = datasets.load_dataset(str(tmp_path / name), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.num_rows == 6
    found = loaded.features["json"] if name == "webdataset" else loaded.features
    assert name == "datacomp" or {*CARRIED} <= {*found}


@pytest.mark.parametrize("kind", JSON_TYPES, ids=str)
def test_values_in_json_have_the_types_stated_in_the_readme_of_an_export(kind: pa.DataType) -> None:
    """The oracle is `datasets`, which parses the types, and Arrow, which converts the values to them."""
    import datasets

    rng = random.Random(0)
    stored = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    own = {name: pa.array([f"{n:032x}" for n in range(9)]) for name in (*MEMBER_COLUMNS, "caption_clean")}
    values = [np.float16(1) if kind == pa.float16() else values_of(stored, rng) for _ in range(9)]
    array = pa.array(values, stored)
    pairs = pa.table({**own, "x": pa.ExtensionArray.from_storage(kind, array) if stored != kind else array})
    file = io.BytesIO()
    write_tar(file, pairs, [b"\xff\xd8\xff"] * 9, carried=["x"])
    found = [
        json.loads(file.getvalue()[offset : offset + length])["x"]
        for name, offset, length in read_tar(io.BytesIO(file.getvalue()))
        if name.endswith(".json")
    ]
    stated = datasets.Features._from_yaml_list(yaml_features(pairs.schema)).arrow_schema.field("x").type
    read = pa.array(found, stated)
    if not pa.types.is_floating(kind):  # NaN and infinity are null in JSON
        assert read.is_valid().equals(array.is_valid())
    for beyond_python in (r"\d\d\.\d{8}[1-9]", r"\d{5,}-\d\d-\d\d"):  # nanoseconds; years after 9999
        text = str(array.cast(text_of(stored)).to_pylist())
        assert re.findall(beyond_python, text) == re.findall(beyond_python, str(found))


def text_of(kind: pa.DataType) -> pa.DataType:
    """The type, with strings in place of dates and times."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(text_of(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, text_of(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(text_of(kind.value_type))
    return pa.string() if pa.types.is_temporal(kind) else kind


def committed_file(folder: Path) -> tuple[Store, str, str]:
    """Write a Parquet file as a build does. Returns its store, name and checksum."""
    rng, rows = np.random.default_rng(0), 300
    vectors = pa.array(rng.normal(size=rows * 8).astype(np.float16))
    columns = {
        "row_id": pa.array([f"0:{row}" for row in range(rows)]),
        "caption": pa.array([f"caption {row % 9}" for row in range(rows)]),
        "similarity": pa.array(rng.normal(size=rows), pa.float32()),
        "image_embedding_tiny": pa.FixedSizeListArray.from_arrays(vectors, type=embedding_type(8)),
    }
    store = Store(str(folder))
    with store.new_file() as file:
        write_table(pa.table(columns), file)
        store.create_from("a.parquet", file)
    return store, "a.parquet", store.checksum("a.parquet")[0]


def test_no_changed_byte_of_a_parquet_file_is_read_as_data(tmp_path: Path) -> None:
    """Every reader detects a change in a page. Export and PairDataset detect any change."""
    store, name, digest = committed_file(tmp_path)
    path, good = tmp_path / name, read_table(store, name)
    body = path.read_bytes()
    footer = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    rng = random.Random(settings.default.max_examples)  # type: ignore[attr-defined]
    for position in rng.sample(range(4, footer), 150) + rng.sample(range(footer, len(body)), 50):
        changed = bytearray(body)
        changed[position] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(DamagedFileError, match=r"a\.parquet has changed since it was committed"):
            check_file(store, name, digest)
        try:
            table = read_table(store, name)
        except DamagedFileError as error:
            assert "a.parquet is damaged" in str(error)
            continue
        assert position >= footer or table.equals(good)  # the changed bits of a page header are unused
    path.write_bytes(body)
    check_file(store, name, digest)


def test_parquet_pages_have_checksums_that_other_readers_can_verify(tmp_path: Path) -> None:
    store, name, _ = committed_file(tmp_path)
    body = bytearray((tmp_path / name).read_bytes())
    body[len(body) // 2] ^= 1
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(pa.BufferReader(bytes(body)), page_checksum_verification=True)
    assert store.exists(name)


def with_tarfile(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60),
            st.binary(max_size=1_100),
            st.none() | st.text(max_size=20),
        ),
        max_size=12,
        unique_by=lambda sample: sample[0],
    )
)
def test_tars_are_byte_for_byte_as_written_by_tarfile(samples: list[tuple[str, bytes, str | None]]) -> None:
    texts = {name: [sample[index] for sample in samples] for index, name in ((0, "uid"), (2, "caption_clean"))}
    nulls = {name: [None] * len(samples) for name in MEMBER_COLUMNS if name != "uid"}
    table, file, pictures = pa.table({**nulls, **texts}), io.BytesIO(), [sample[1] for sample in samples]
    members = []
    for uid, picture, caption in samples:
        detail = json.dumps({**dict.fromkeys(MEMBER_COLUMNS), "uid": uid}, ensure_ascii=False)
        members += [(f"{uid}.jpg", picture), (f"{uid}.txt", (caption or "").encode())]
        members += [(f"{uid}.json", detail.encode())]
    try:
        expected = with_tarfile(members)
    except ValueError:
        with pytest.raises(ValueError, match="name is too long"):
            write_tar(file, table, pictures, "jpg")
        return
    offsets, lengths = write_tar(file, table, pictures, "jpg")
    assert file.getvalue() == expected
    found = [file.getvalue()[offset : offset + length] for offset, length in zip(offsets, lengths, strict=True)]
    assert found == pictures
