"""Packs a shard's table into one buffer, to send it between Ray actors.

The buffer is an Arrow IPC stream, because pickling a slice of a table would send the whole table. Ray transfers the
buffer out of band and memory-maps it in the reader, so neither side makes another copy.
"""

import pyarrow as pa

from pairmill.schemas.batch import BatchInfo, ShardBatch

_INFO = b"info"


def pack(batch: ShardBatch) -> pa.Buffer:
    """Write the batch as an Arrow IPC stream, with its info in the schema's metadata."""
    table = batch.table.replace_schema_metadata({_INFO: batch.info.to_json()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def unpack(payload: pa.Buffer) -> ShardBatch:
    """Read the batch back, without copying: its table uses the buffer's memory."""
    table = pa.ipc.open_stream(payload).read_all()
    return ShardBatch(BatchInfo.from_json(table.schema.metadata[_INFO]), table.replace_schema_metadata(None))
