"""The ordered list of stages that a shard goes through, and `process_shard()`: the plain loop over them.

A stage is built once per worker and called once per shard: Arrow table in, Arrow table out, row for row. Ray runs the
very same objects (`jobs/cluster/engine.py`); this file does not know of it.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline import rules
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.previous_generation import failed_row_ids, read_previous
from pairmill.pipeline.dataset.shards import AccountingError, ShardWriter, read_manifest
from pairmill.pipeline.source.files import ColumnMapping
from pairmill.pipeline.source.rows import ShardReader
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import Shard, ShardManifest, manifest_name, shards_from_table
from pairmill.schemas.pairs import KEPT_STATUS
from pairmill.schemas.status import Step
from pairmill.schemas.version import VERSION

if TYPE_CHECKING:
    from pairmill.pipeline.fetch.download import Downloader
    from pairmill.pipeline.fetch.img2dataset_engine import Img2datasetDownloader

StageName = Literal["read", "download", "load", "encode", "commit"]


class Stage(Protocol):
    """One step of the work, holding what it needs between shards (a session, a model)."""

    def __call__(self, table: pa.Table) -> pa.Table: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Context:
    """All that a worker needs to build its stage. Travels to the workers, so it holds plain values only."""

    job: BuildJob
    mapping: ColumnMapping
    job_fingerprint: str
    retry: frozenset[str] = frozenset()
    """Statuses whose rows are fetched again, of committed shards. Empty: shards are made for the first time."""
    isolated: bool = False
    """For shards that killed a worker: decode in a child process, slowly."""
    columns_of: str | None = None
    """Alias of a model, the job's only one, whose columns are added to shards that are committed already."""
    may_exit: bool = False
    """This process is a worker that is replaced when it ends: it may end itself where a decoder hangs."""

    @property
    def rules(self) -> rules.SourceRules:
        """The job's rules, bound to this source."""
        return rules.SourceRules.of(self.job, self.mapping)

    @property
    def store(self) -> Store:
        return Store(self.job.output, self.job.s3)


@dataclass
class ReadStage:
    """A planned shard (a row of PLAN_SCHEMA) becomes its rows; caption and URL rules, before anything is fetched."""

    context: Context
    reader: ShardReader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = ShardReader(self.context.store, self.context.mapping)

    def __call__(self, table: pa.Table) -> pa.Table:
        (shard,) = shards_from_table(table)
        generation = table["generation"][0].as_py() if self.context.retry else 0  # that the retry builds on
        table, custom = self.reader.read(shard), _custom_rules(self.context)
        for step in (Step.CAPTION,) if self.context.job.source.held else (Step.CAPTION, Step.URL):
            table = rules.apply_rules(table, step, self.context.rules, custom)
        return self._only_failed(table, manifest_name(shard.shard, generation)) if self.context.retry else table

    def _only_failed(self, table: pa.Table, earlier: str) -> pa.Table:
        """The rows to fetch again, and beside them the name of the manifest that they are taken from."""
        store = self.context.store
        manifest = read_manifest(store, earlier)
        failed = failed_row_ids(store, manifest, self.context.retry).combine_chunks()
        table = table.filter(pc.is_in(table["row_id"], value_set=failed))
        return table.replace_schema_metadata({**table.schema.metadata, b"earlier": manifest.name.encode()})

    def close(self) -> None:
        self.reader.close()


class DownloadStage:
    """URLs become stored pictures; image rules. What passes them is a pair."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.downloader = _open_downloader(context)

    def __call__(self, table: pa.Table) -> pa.Table:
        custom = _custom_rules(self.context)  # first: a rule that does not load costs no request
        table = rules.apply_rules(self.downloader(table), Step.IMAGE, self.context.rules, custom)
        is_pair = pc.equal(table["status"], KEPT_STATUS)
        return table.set_column(table.schema.get_field_index("is_pair"), table.schema.field("is_pair"), is_pair)

    def close(self) -> None:
        self.downloader.close()


class LoadStage:
    """The pictures of a held corpus, read from where they are; image rules that need no pixels."""

    def __init__(self, context: Context) -> None:
        from pairmill.pipeline.source.corpus.load import Loader

        self.context = context
        self.loader = Loader(context.job.images, context.store.files, context.isolated)

    def __call__(self, table: pa.Table) -> pa.Table:
        custom = _custom_rules(self.context)
        table = self.loader(table, has_pictures=self.context.mapping.pictures != "none")
        table = rules.apply_rules(table, Step.IMAGE, self.context.rules, custom)
        is_pair = pc.equal(table["status"], KEPT_STATUS)
        return table.set_column(table.schema.get_field_index("is_pair"), table.schema.field("is_pair"), is_pair)

    def close(self) -> None:
        self.loader.close()


class EncodeStage:
    """Pairs get embeddings and similarities of every model."""

    def __init__(self, context: Context) -> None:
        from pairmill.pipeline.encode.encoder import Encoder  # loads torch: only this stage pays for it

        job = context.job
        self.encoder = Encoder(job.models, job.run, job.images, context.may_exit)
        self.pixels = "original picture, upright, in sRGB" if job.source.held else "stored picture"

    def __call__(self, table: pa.Table) -> pa.Table:
        contracts = [{**asdict(model.contract), "pixels": self.pixels} for model in self.encoder.models]
        facts = {**shard_facts(table), "models": contracts}
        return with_facts(self.encoder(table), facts)

    def close(self) -> None:
        self.encoder.close()


class CommitStage:
    """Score rules; then the shard is written and becomes its manifest (one row, one JSON column)."""

    def __init__(self, context: Context) -> None:
        job = context.job
        self.context = context
        self.writer = ShardWriter(
            store=context.store,
            extra=context.mapping.extra,
            aliases=[model.alias for model in job.models],
            images_store="elsewhere" if job.source.held else job.images.store,
            images_format=job.images.format,
            job_fingerprint=context.job_fingerprint,
            versions=versions(),
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        facts = shard_facts(table)
        if facts["rows_in"] != table.num_rows:
            raise AccountingError(f"{facts['rows_in']} rows read, {table.num_rows} to commit")
        table = rules.apply_rules(table, Step.SCORE, self.context.rules, _custom_rules(self.context))
        store, name = self.context.store, table.schema.metadata.get(b"earlier")
        earlier = None if name is None else read_previous(store, read_manifest(store, name.decode()))
        manifest = self.writer.commit(table, facts, earlier)
        return pa.table({"manifest": [manifest.model_dump_json()]})

    def close(self) -> None: ...


class PairsStage:
    """A committed shard (a row of PLAN_SCHEMA with its `generation`) becomes its pairs, with their pictures."""

    def __init__(self, context: Context) -> None:
        from pairmill.pipeline.columns.added_model import PairsReader

        self.context = context
        self.reader = PairsReader(context.store, context.mapping, context.job)

    def __call__(self, table: pa.Table) -> pa.Table:
        (shard,) = shards_from_table(table)
        name = manifest_name(shard.shard, table["generation"][0].as_py())
        manifest = read_manifest(self.context.store, name)
        rows = self.reader.read(shard, manifest)
        return rows.replace_schema_metadata({**rows.schema.metadata, b"manifest": manifest.name.encode()})

    def close(self) -> None:
        self.reader.close()


class ColumnsStage:
    """The columns of one more model are written beside the shard, whose manifest stays what it is."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, table: pa.Table) -> pa.Table:
        from pairmill.pipeline.columns.added_model import write_columns

        store, alias = self.context.store, self.context.columns_of or ""
        manifest = read_manifest(store, table.schema.metadata[b"manifest"].decode())
        write_columns(store, alias, table, shard_facts(table), manifest, self.context.job_fingerprint)
        return pa.table({"manifest": [manifest.model_dump_json()]})

    def close(self) -> None: ...


def build_stages(context: Context) -> list[tuple[StageName, Callable[[Context], Stage]]]:
    """The stages of a job in order, each as its name and the call that builds it on a worker."""
    job = context.job
    if context.columns_of:
        return [("read", PairsStage), ("encode", EncodeStage), ("commit", ColumnsStage)]
    if job.source.held:
        return [("read", ReadStage), ("load", LoadStage), ("encode", EncodeStage), ("commit", CommitStage)]
    encode: list[tuple[StageName, Callable[[Context], Stage]]] = [("encode", EncodeStage)] if job.models else []
    return [("read", ReadStage), ("download", DownloadStage), *encode, ("commit", CommitStage)]


def process_shard(shard: Shard, context: Context, stages: Sequence[tuple[StageName, Stage]]) -> ShardManifest:
    """One shard from plan to commit, in this process. `stages` as made by `open_stages`."""
    table = shard.to_table()
    for name, stage in stages:
        table = run_stage(name, stage, table)
    return ShardManifest.model_validate_json(table["manifest"][0].as_py())


def open_stages(context: Context) -> list[tuple[StageName, Stage]]:
    """Build every stage of the job in this process. Close each when done."""
    return [(name, build(context)) for name, build in build_stages(context)]


def run_stage(name: StageName, stage: Stage, table: pa.Table) -> pa.Table:
    """Call a stage; holds it to the row count and notes its wall seconds in the table's metadata."""
    started = time.perf_counter()
    result = stage(table)
    if name == "commit":
        return result
    if name == "read":
        facts = {"rows_in": result.num_rows, "shard": json.loads(result.schema.metadata[b"shard"]), "seconds": {}}
    else:
        facts = shard_facts(result)
        if result.num_rows != table.num_rows:
            raise AccountingError(f"stage {name} got {table.num_rows} rows and returned {result.num_rows}")
    facts["seconds"][name] = round(time.perf_counter() - started, 3)
    return with_facts(result, facts)


def shard_facts(table: pa.Table) -> dict[str, Any]:
    """What travels beside a shard's rows: `shard`, `rows_in`, `seconds` per stage, `models` (score contracts)."""
    return json.loads(table.schema.metadata[b"facts"])  # type: ignore[no-any-return]


def with_facts(table: pa.Table, facts: dict[str, Any]) -> pa.Table:
    """The table with these facts beside it."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), b"facts": json.dumps(facts).encode()})


def versions() -> dict[str, str]:
    """Versions of what shapes the output."""
    return {"pairmill": VERSION} | {name: version(name) for name in ("pyarrow", "pillow", "open_clip_torch", "torch")}


def _open_downloader(context: Context) -> "Downloader | Img2datasetDownloader":
    sha256_column = context.mapping.output_name(context.mapping.sha256_column)
    if context.job.fetch.engine == "img2dataset":
        from pairmill.pipeline.fetch.img2dataset_engine import Img2datasetDownloader

        return Img2datasetDownloader(context.job, sha256_column)
    from pairmill.pipeline.fetch.download import Downloader

    return Downloader(context.job, sha256_column, context.isolated, context.may_exit and not context.isolated)


def _custom_rules(context: Context) -> list[rules.CustomRule]:
    load = rules.isolated if context.isolated else rules.load_custom_rule
    return [load(name, Path.cwd()) for name in context.job.rules.custom]
