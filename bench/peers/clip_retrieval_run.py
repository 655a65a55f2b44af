"""Runs clip-retrieval's reader, mapper and writer in a plain loop, in `.venv-clip-retrieval`. Prints one JSON line.

The clock starts after the first batch, so the rate excludes loading the model and starting the workers.
"""

import json
import sys
import time


def main() -> None:
    import torch
    from all_clip import load_clip
    from clip_retrieval.clip_inference.mapper import ClipMapper
    from clip_retrieval.clip_inference.reader import WebdatasetReader
    from clip_retrieval.clip_inference.runner import Sampler
    from clip_retrieval.clip_inference.writer import NumpyWriter

    tars, weights, output, batch_size, workers, threads = (
        sys.argv[1].split(","),
        *sys.argv[2:4],
        *map(int, sys.argv[4:]),
    )
    torch.set_num_threads(threads)
    model = f"open_clip:ViT-B-32/{weights}"
    _, preprocess, tokenizer = load_clip(clip_model=model, use_jit=False, warmup_batch_size=1)
    reader = WebdatasetReader(Sampler(0, 1), preprocess, tokenizer, tars, batch_size, workers)
    mapper = ClipMapper(True, True, False, False, model, False, "")
    writer = NumpyWriter(0, output, True, True, False, 1)
    rows, started = 0, 0.0
    for number, batch in enumerate(reader):
        writer(mapper(batch))
        if number:
            rows += len(batch["image_tensor"])
        else:
            started = time.perf_counter()
    writer.flush()
    print("\n" + json.dumps({"rows_per_s": rows / (time.perf_counter() - started), "rows": rows}))


if __name__ == "__main__":
    main()
