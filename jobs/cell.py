"""A shard's table as one cell of a one-row Arrow table: what travels between Ray actors.

One Ray Data row, and one block, is one shard. Rows of different shards would otherwise meet in one batch, and a block
above the target size would arrive split. Both directions share memory with the object store instead of copying
(`pa.array([bytes])` and `scalar.as_buffer()` copy).
"""

import struct

import pyarrow as pa

CELL_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("table", pa.large_binary()),  # Arrow IPC stream; null where the shard failed
        pa.field("error", pa.string()),  # traceback; null where it did not
    ]
)


def pack(shard: int, table: pa.Table) -> pa.Table:
    """A shard's table as one row of CELL_SCHEMA."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue()
    offsets = pa.py_buffer(struct.pack("<qq", 0, stream.size))
    cell = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, stream])
    return pa.Table.from_arrays([pa.array([shard]), cell, pa.nulls(1, pa.string())], schema=CELL_SCHEMA)


def failed(shard: int, error: str) -> pa.Table:
    """The row of a shard that failed, with its traceback."""
    return pa.Table.from_pylist([{"shard": shard, "table": None, "error": error}], schema=CELL_SCHEMA)


def unpack(cell: pa.Table) -> pa.Table:
    """The table in a cell that holds one, backed by the cell's own memory."""
    (chunk,) = cell["table"].chunks
    _, offsets, data = chunk.buffers()
    start, end = struct.unpack_from("<qq", offsets, chunk.offset * 8)
    return pa.ipc.open_stream(data.slice(start, end - start)).read_all()
