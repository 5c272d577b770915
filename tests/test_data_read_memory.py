"""Reading holds a split and little more: measured on a process of its own, by the kernel's high-water mark."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PROBE = """
import sys
from pathlib import Path
import pyarrow as pa
from raybert.data.files import list_inputs
from raybert.data.parquet import read_footers
from raybert.data.read import ReadSpec, read_splits
from raybert.data.splits import row_group_tasks, stream_task
inputs = list_inputs(sys.argv[1])
spec = ReadSpec(root=inputs.root, format=inputs.format, text_column="text", keep=pa.schema([]),
                split_rows=10**6, split_bytes=4 << 20)
tasks = [stream_task(inputs.files[0])]
if inputs.format == "parquet":
    tasks = row_group_tasks(inputs.files[0], read_footers(inputs, ("text",))[0].groups,
                            split_rows=10**6, split_bytes=4 << 20)
rows = 0
for task in tasks:
    for split in read_splits(task, spec):
        rows += split.rows_in
status = Path("/proc/self/status").read_text()
print(rows, status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.parametrize("name", ["a.parquet", "dictionary.parquet", "a.jsonl.gz", "a.csv.gz"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    """Ten times the file, one row group: the peak stays (split of 4 MiB; 200 MB against 20 MB)."""

    def peak(scale: int) -> int:
        path = tmp_path / f"{scale}-{name}"
        count = 2_000 * scale
        rows = [f"{number % 50:5}" + "word " * 2_000 for number in range(50)]
        if name.endswith(".gz"):
            lines = [json.dumps({"text": row}) if "json" in name else f'"{row}\n"' for row in rows]
            header = b"" if "json" in name else gzip.compress(b"text\n")
            block = "".join(f"{line}\n" for line in lines).encode()
            path.write_bytes(header + gzip.compress(block, 1) * (count // 50))
        else:
            column = pa.chunked_array([pa.array(rows)] * (count // 50))
            pq.write_table(
                pa.table({"text": column}),
                path,
                row_group_size=count,
                use_dictionary=name.startswith("dict"),
                compression="zstd",
            )
            assert pq.read_metadata(path).num_row_groups == 1
        run = [sys.executable, "-c", textwrap.dedent(PROBE), str(path)]
        rows_read, peak_kb = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
        assert int(rows_read) == count
        return int(peak_kb) >> 10

    assert peak(10) <= peak(1) + 40
