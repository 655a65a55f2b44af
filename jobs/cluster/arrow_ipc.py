"""A shard's table as one buffer: what travels between Ray actors.

An Arrow IPC stream, because pickling a slice of a table would send all that it is a slice of. Ray carries the buffer
out of band and maps it where it is read, so neither side copies it once more.
"""

import pyarrow as pa

from pairmill.schemas.batch import BatchInfo, ShardBatch

_INFO = b"info"


def pack(batch: ShardBatch) -> pa.Buffer:
    """The batch as an Arrow IPC stream; its info stands in the schema's metadata."""
    table = batch.table.replace_schema_metadata({_INFO: batch.info.to_json()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def unpack(payload: pa.Buffer) -> ShardBatch:
    """The batch, backed by the buffer's own memory."""
    table = pa.ipc.open_stream(payload).read_all()
    return ShardBatch(BatchInfo.from_json(table.schema.metadata[_INFO]), table.replace_schema_metadata(None))
