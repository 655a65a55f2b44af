"""Runs Daft: download, decode, resize and encode. Prints one JSON line. Called by bench.fetch, in `.venv-peers`."""

import json
import sys
import time

started = time.perf_counter()


def main() -> None:
    import daft
    from daft import col

    urls, output, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
    began = time.perf_counter()
    frame = daft.read_parquet(urls).limit(limit)
    body = col("url").download(on_error="null", max_connections=64)
    image = body.decode_image(on_error="null", mode="RGB").resize(512, 384)  # Daft has no mode that keeps aspect ratios
    frame = frame.with_column("jpeg", image.encode_image("JPEG"))
    frame.write_parquet(output)
    ended = time.perf_counter()
    good = daft.read_parquet(f"{output}/*.parquet").where(col("jpeg").not_null()).count_rows()
    print("\n" + json.dumps({"wall_s": ended - started, "rows_per_s": limit / (ended - began), "good": good}))


if __name__ == "__main__":
    main()
