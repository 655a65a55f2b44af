"""Runs a build without a model. Prints one JSON line. Called by bench.fetch.

python -m bench.build_run ENGINE URLS OUT SHARD_ROWS TIMEOUT_S
"""

import json
import sys
from pathlib import Path

from pairmill.jobs.cluster.fork_server import started_ahead


def run(engine: str, urls: Path, output: Path, shard_rows: int, timeout_s: int) -> dict[str, float]:
    """Run the build. Returns its figures."""
    from bench.clock import Clock
    from pairmill.jobs.build import build
    from pairmill.schemas.jobs import BuildJob

    clock = Clock()
    values = {
        "source": {"paths": [str(urls)]},
        "output": str(output),
        "shard_rows": shard_rows,
        "fetch": {"allow_networks": ["127.0.0.0/8"], "engine": engine, "timeout_s": timeout_s, "retries": 0},
    }
    result = build(BuildJob.model_validate(values), clock)
    return {"rows_per_s": clock.rows_per_s, "good": result.kept}


def main() -> None:
    engine, urls, output, shard_rows, timeout_s = sys.argv[1:]
    with started_ahead():  # as the command does
        figures = run(engine, Path(urls), Path(output), int(shard_rows), int(timeout_s))
    print("\n" + json.dumps(figures))


if __name__ == "__main__":
    main()
