"""Tests which columns the export formats read. A model's columns are found by their declared names, not by pattern."""

import pyarrow as pa

from pairmill.pipeline.export.arrays import ClipRetrieval, DataComp
from pairmill.pipeline.export.formats import ParquetFiles, WebDataset
from pairmill.schemas.pairs import pairs_schema, score_columns

SOURCE_COLUMNS = ["my_embedding_size", "source_similarity_score", "notes"]
SCHEMA = pairs_schema(
    pa.schema([pa.field(name, pa.string()) for name in SOURCE_COLUMNS]),
    [score_columns("tiny", 4), score_columns("id", 4)],
)
EMBEDDINGS = {"image_embedding_tiny", "text_embedding_tiny", "image_embedding_id", "text_embedding_id"}
TAR_COLUMNS = {"image_tar", "image_offset", "image_length", "image_crc32"}


def test_parquet_has_every_column_but_embeddings_and_tar_offsets() -> None:
    columns = ParquetFiles(["tiny", "id"]).columns(SCHEMA)
    assert set(columns) == set(SCHEMA.names) - EMBEDDINGS - TAR_COLUMNS
    assert set(SOURCE_COLUMNS) < set(columns)


def test_webdataset_has_the_similarity_of_every_model_but_not_columns_with_similar_names() -> None:
    columns = WebDataset(["tiny", "id"], has_captions=True).columns(SCHEMA)
    assert {"similarity_tiny", "similarity_id"} < set(columns)
    assert not set(SOURCE_COLUMNS) & set(columns)


def test_clip_retrieval_has_the_embeddings_of_one_model_and_all_metadata() -> None:
    columns = ClipRetrieval("id", ["tiny", "id"], has_captions=True).columns(SCHEMA)
    assert set(columns) & EMBEDDINGS == {"image_embedding_id", "text_embedding_id"}
    assert set(SOURCE_COLUMNS) < set(columns)


def test_exports_without_captions_have_no_text_embeddings() -> None:
    for columns in (
        ClipRetrieval("id", ["tiny", "id"], has_captions=False).columns(SCHEMA),
        DataComp(["id"], ["id"], has_captions=False).columns(SCHEMA),
    ):
        assert set(columns) & EMBEDDINGS == {"image_embedding_id"}
