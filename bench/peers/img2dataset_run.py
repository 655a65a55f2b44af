"""Runs img2dataset. Prints one JSON line. Called by bench.fetch, in `.venv-peers`."""

import json
import os
import sys
import time
from pathlib import Path

started = time.perf_counter()
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"


def main() -> None:
    from img2dataset import download

    from bench.rate import steady_rate

    urls, output, processes, threads, timeout_s = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    download(
        url_list=urls,
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=output,
        output_format="webdataset",
        image_size=512,
        resize_mode="keep_ratio_largest",
        resize_only_if_bigger=True,
        encode_quality=95,
        processes_count=processes,
        thread_count=threads,
        number_sample_per_shard=500,
        timeout=timeout_s,
        retries=0,
        enable_wandb=False,
        compute_hash="sha256",
    )
    wall_s = time.perf_counter() - started
    stats = [json.loads(path.read_text()) for path in Path(output).glob("*_stats.json")]
    steady = steady_rate((each["end_time"], each["count"]) for each in stats)
    good = sum(each["successes"] for each in stats)
    print("\n" + json.dumps({"wall_s": wall_s, "rows_per_s": steady, "good": good}))


if __name__ == "__main__":
    main()
