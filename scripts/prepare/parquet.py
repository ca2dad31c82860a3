"""Parquet files, read in a stream: blocks of rows, each a record batch that becomes objects where it is processed.

for block in parquet_blocks(path, on_rows=lambda done, of: ...):
    for row, value in block.objects(problems):      # rows count from 1
        ...

pyarrow is an optional part: UserError says how to install it where it is missing.
"""

from dataclasses import dataclass

from prepare import jsonl
from prepare.errors import UserError

BATCH_ROWS = 256


def require_pyarrow(path, kind):
    """The package, which also reads zstd."""
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            f"{path}: reading {kind} takes pyarrow, which is not installed here\n"
            "  fix: .venv/bin/python -m pip install -r scripts/requirements-data.txt, or write the data as JSONL"
        ) from None
    return pyarrow


@dataclass
class Rows:
    first: int
    batch: bytes  # Arrow's IPC stream of one record batch: it goes to other processes

    def objects(self, problems):
        import pyarrow

        with pyarrow.ipc.open_stream(self.batch) as reader:
            batch = reader.read_next_batch()
        for row in range(batch.num_rows):
            part = batch.slice(row, 1)
            if part.get_total_buffer_size() > jsonl.MAX_LINE_BYTES and part.nbytes > jsonl.MAX_LINE_BYTES:
                mistake = jsonl.too_long("row")
                problems.add(mistake.kind, mistake.fix, self.first + row)
                continue
            try:
                yield self.first + row, part.to_pylist()[0]
            except (ValueError, UnicodeDecodeError) as e:
                problems.add("a row that cannot be read", "write the file again", self.first + row, detail=str(e)[:120])


def parquet_blocks(path, on_rows):
    pyarrow = require_pyarrow(path, "Parquet")
    import pyarrow.parquet

    row = 1
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            total = file.metadata.num_rows
            for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                sink = pyarrow.BufferOutputStream()
                with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                yield Rows(row, sink.getvalue().to_pybytes())
                row += batch.num_rows
                on_rows(row - 1, total)
    except pyarrow.ArrowException as e:
        raise UserError(f"{path}: not a readable Parquet file: {str(e)[:200]}\n  fix: write it again") from None
