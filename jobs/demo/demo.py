"""`pairmill demo`: serves a small simulated web, builds a dataset from it, and compares it with the ground truth.

The build is an ordinary one: it reads a list, fetches over HTTP, scores with `tiny` and writes shards. Each row's kind,
expected Status and ground truth are extra columns, so the comparison only needs the output.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from pairmill.jobs.build import build
from pairmill.jobs.demo.pairs import (
    CAPTION_MAX_CHARS,
    KINDS,
    MIN_SIDE,
    SHARD_ROWS,
    Comparison,
    DemoRow,
    Web,
    compare,
    demo_pairs,
)
from pairmill.jobs.demo.web import demo_web
from pairmill.jobs.funnel import funnel
from pairmill.jobs.job_file import resolve
from pairmill.jobs.progress import ConsoleProgress
from pairmill.jobs.report import report
from pairmill.jobs.results import BuildResult
from pairmill.pipeline.common.files import is_remote
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted, pairmill_command
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.pipeline.dataset.output_folder import names_in_output
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.schemas.errors import JobError
from pairmill.schemas.jobs import BuildJob

INPUT, DATASET, REPORT = "input.parquet", "dataset", "report.html"
MARKER = "demo.json"
"""This file marks a folder as one that the demo wrote, so the next demo may replace it."""

FETCH_TIMEOUT_S = 5.0
"""Each shard waits this long for servers that never respond. On a busy machine, 3 s was too short for slow servers."""

_ROW_SCHEMA = pa.schema(
    [
        pa.field("url", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("expected", pa.string()),  # statuses, comma-separated
        pa.field("truth", pa.bool_()),  # whether the row should be kept; null: both outcomes are fine
    ]
)


def run_demo(out: str, pairs: int, seed: int, as_json: bool) -> bool:
    """Run the demo in the folder `out` and print the results. Returns False if any row or shard is not as expected.

    Raises JobError if it cannot start.
    """
    started = time.perf_counter()
    threshold = calibrated_threshold()
    store = _prepare_folder(out, seed, pairs)
    listener = ConsoleProgress()
    with demo_web(seed, pairs) as web:
        rows = demo_pairs(seed, pairs, web)
        store.replace(INPUT, input_file(rows))
        listener.say(_announcement(rows, web, seed))
        try:
            result = build(_job(store, threshold), listener)
        finally:
            listener.close()
    dataset = Store(store.path(DATASET))
    report(dataset)
    comparison = compare(rows, _outcomes(dataset))
    seconds = round(time.perf_counter() - started, 1)
    typer.echo("\n" + _text(result, comparison, threshold, seconds, out))
    if as_json:
        typer.echo(json.dumps(_summary(result, comparison, threshold, seconds)))
    return not (result.shards_missing or comparison.mismatches or comparison.rows_missing)


def calibrated_threshold() -> float:
    """The minimum similarity of kept pairs, calibrated for `tiny` on pictures that the demo does not use."""
    file = resources.files("pairmill.pipeline.encode.tiny").joinpath("calibration.json")
    try:
        return float(json.loads(file.read_text("utf-8"))["min_similarity"])
    except FileNotFoundError:
        raise JobError("the model `tiny` is incomplete (no calibration.json): reinstall pairmill") from None


def input_file(rows: Sequence[DemoRow]) -> bytes:
    """The demo's input list as a Parquet file, with one row group per shard."""
    table = pa.Table.from_pylist(
        [
            {
                "url": row.url,
                "caption": row.caption,
                "kind": row.kind,
                "expected": ",".join(row.expected),
                "truth": row.truth,
            }
            for row in rows
        ],
        schema=_ROW_SCHEMA,
    )
    file = BytesIO()
    pq.write_table(table, file, row_group_size=SHARD_ROWS)
    return file.getvalue()


def _prepare_folder(out: str, seed: int, pairs: int) -> Store:
    """Prepare an empty folder. Deletes only what a previous demo wrote."""
    if is_remote(out):
        raise JobError(f"--out {out}: the demo writes to a local folder")
    folder, store = Path(out), Store(out)
    names = names_in_output(store)
    if _is_demo(folder):
        if (folder / DATASET).is_dir():
            shutil.rmtree(folder / DATASET)
        (folder / INPUT).unlink(missing_ok=True)
    elif names:
        raise JobError(
            f"--out {out}: the demo did not write this folder, which contains {names[0]}; choose a new or empty folder"
        )
    store.replace(MARKER, json.dumps({"made_by": "pairmill demo", "seed": seed, "pairs": pairs}).encode())
    store.remove_temporary()
    return store


def _is_demo(folder: Path) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("made_by") == "pairmill demo"


def _job(store: Store, threshold: float) -> BuildJob:
    return resolve(
        {
            "source": {"paths": [store.path(INPUT)], "url_column": "url", "caption_column": "caption"},
            "output": store.path(DATASET),
            "shard_rows": SHARD_ROWS,
            "fetch": {
                "timeout_s": FETCH_TIMEOUT_S,
                "retries": 1,
                "concurrency": 16,  # low, because the servers draw each picture on request, on the same cores
                "allow_networks": ["127.0.0.0/8"],
            },
            "images": {"size": 256},
            "models": [{"name": "tiny"}],
            "rules": {
                "image_min_side": MIN_SIDE,
                "caption_max_chars": CAPTION_MAX_CHARS,
                "min_similarity": {"tiny": threshold},
            },
        }
    )


def _outcomes(dataset: Store) -> list[dict[str, str]]:
    """kind, expected and status of every row of the output."""
    columns = ["kind", "expected", "status"]
    rows: list[dict[str, str]] = []
    for manifest in read_manifests(dataset):
        for name in ("pairs", "rejects"):
            rows += read_table(dataset, manifest.files[name].path, columns).to_pylist()
    return rows


def _announcement(rows: Sequence[DemoRow], web: Web, seed: int) -> str:
    counts = Counter(row.kind for row in rows)
    pairs, hosts = counted(len(rows), "pair"), counted(len(web.hosts), "loopback host")
    lines = [f"Serving {pairs} on {hosts}, port {web.port} (seed {seed}):"]
    lines += [f"{counts[kind.name]:>7,}  {_plain(kind.name):<14} {kind.about}" for kind in KINDS]
    return "\n".join(lines)


def _text(result: BuildResult, comparison: Comparison, threshold: float, seconds: float, out: str) -> str:
    """The text that the demo prints at the end."""
    parts = [funnel(result.rows_in, result.statuses), _kind_table(comparison), _verdict(comparison, threshold)]
    parts += [f"shard {shard:09d} failed: {error}" for shard, error in result.failures.items()]
    if result.shards_missing:
        parts.append(
            typer.style(f"{len(result.shards_missing):,} of {counted(result.shards, 'shard')} missing", fg="red")
        )
    dataset = Path(out, DATASET)
    parts.append(
        f"Done in {seconds:.0f} s. See the report, with pictures:\n"
        f"  {dataset / REPORT}\n"
        "Then try:\n"
        f"  {pairmill_command('status', str(dataset))}\n"
        f"  {pairmill_command('verify', str(dataset))}\n"
        f"  pairmill build --help"
    )
    return "\n\n".join(parts)


def _kind_table(comparison: Comparison) -> str:
    lines = [f"{'kind':<14}{'rows':>6}  {'expected':<19}{'as expected':>12}{'kept':>7}"]
    for outcome in comparison.kinds:
        expected = "scored" if outcome.kind.is_scored else outcome.kind.expected[0].value
        as_expected = f"{outcome.as_expected:,}"
        kept = f"{outcome.kept:,}" if outcome.kind.is_scored else ""
        line = f"{_plain(outcome.kind.name):<14}{outcome.rows:>6,}  {expected:<19}{as_expected:>12}{kept:>7}".rstrip()
        if outcome.others:
            became = ", ".join(f"{count:,} {status}" for status, count in outcome.others.most_common())
            line = typer.style(f"{line}  instead: {became}", fg="red")
        lines.append(line)
    if comparison.rows_missing:
        lines.append(typer.style(f"{counted(comparison.rows_missing, 'row')} missing from the output", fg="red"))
    return "\n".join(lines)


def _verdict(comparison: Comparison, threshold: float) -> str:
    kinds = {outcome.kind.name: outcome for outcome in comparison.kinds}
    near = [kinds[name] for name in ("wrong_color", "wrong_shape")]
    swapped = kinds["swapped_order"]
    return "\n".join(
        [
            f"statuses    {counted(comparison.mismatches, 'row')} not as expected"
            if comparison.mismatches
            else "statuses    every row is as expected",
            f"precision   {_share(comparison.precision)} of kept rows are right (threshold {threshold:.3f})",
            f"recall      {_share(comparison.recall)} of the right rows were kept",
            f"near misses {sum(o.kept for o in near):,} of {sum(o.rows for o in near):,} with one wrong word were kept",
            f"swapped     {swapped.kept:,} of {swapped.rows:,} swapped pairs kept; not counted above",
        ]
    )


def _summary(result: BuildResult, comparison: Comparison, threshold: float, seconds: float) -> dict[str, str]:
    """The values that --json prints."""
    kept_by_kind = {outcome.kind.name: outcome.kept for outcome in comparison.kinds if outcome.kind.is_scored}
    return {
        **{name: getattr(result, name) for name in ("rows_in", "pairs", "rejects", "kept", "output")},
        "precision": comparison.precision,
        "recall": comparison.recall,
        "status_mismatches": comparison.mismatches,
        "seconds": seconds,
        "shards": result.shards,
        "shards_missing": result.shards_missing,
        "rows_missing": comparison.rows_missing,
        "min_similarity": threshold,
        "rows_by_kind": {outcome.kind.name: outcome.rows for outcome in comparison.kinds},
        "kept_by_kind": kept_by_kind,
        "statuses": result.statuses,
        "report": f"{result.output}/{REPORT}",
    }


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _share(value: float | None) -> str:
    return "   -- " if value is None else f"{value:6.1%}"
