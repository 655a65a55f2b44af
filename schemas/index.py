"""Defines the records of search indexes, which say what each part of an index covers and where it is stored."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile

EmbeddingKind = Literal["image", "text"]
"""Which of a model's two embeddings: the picture's or the caption's."""


class IndexedShard(BaseModel):
    """A shard in one part of an index."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard: int
    generation: int
    num_rows: int
    """Rows of the shard's pairs file. They have consecutive ids in the part, whether or not they have an embedding."""
    num_embeddings: int
    blake2b: str
    """Checksum of the file with the embeddings, as in the manifest that lists the file."""


class IndexPart(BaseModel):
    """`index/ALIAS-KIND/manifests/SHARD.DIGEST.json`, written last and create-only: the part exists if and only if this
    file does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    shards: list[IndexedShard]
    """The shards of the part, in the order of their ids."""
    dim: int
    lists: int
    """Number of groups of similar vectors. A search reads only a few groups. With 1, it reads all vectors and is
    exact."""
    file: DataFile
    """The vectors, in faiss's format."""
    seconds: float
    """Time to build the part."""
    versions: dict[str, str]

    @property
    def num_rows(self) -> int:
        """Rows that the part covers."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def num_embeddings(self) -> int:
        """Rows in the part that have an embedding."""
        return sum(shard.num_embeddings for shard in self.shards)
