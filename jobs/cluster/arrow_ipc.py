"""A shard's table as one buffer: what travels between Ray actors.

An Arrow IPC stream, because pickling a slice of a table would send all that it is a slice of. Ray carries the buffer
out of band and maps it where it is read, so neither side copies it once more.
"""

import pyarrow as pa


def pack(table: pa.Table) -> pa.Buffer:
    """The table with its metadata."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def unpack(payload: pa.Buffer) -> pa.Table:
    """The table, backed by the buffer's own memory."""
    return pa.ipc.open_stream(payload).read_all()
