"""Tests that PairDataset's pictures, tokens and embeddings belong to their rows, and that a model trains on them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from bench.faulty_s3 import credentials, s3_server
from pairmill.jobs.select import select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.integrity import DamagedFileError
from pairmill.pipeline.feed.pair_dataset import FeedConfig, FeedError, PairDataset
from pairmill.pipeline.feed.shards import FeedShards
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.subset import SelectJob
from tests.integration.test_build import picture, sequentially
from tests.integration.test_embed import CAPTION, embed_job, rows_in, samples
from tests.tars import write_tar


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pairs in six shards, embedded by `tiny`; the subset `most` has 20 of them."""
    folder = tmp_path_factory.mktemp("held")
    for number in range(2):
        write_tar(folder / f"{number:05d}.tar", samples(12, 12 * number))
    sequentially(embed_job(folder / "out", folder))
    steps = [{"top": {"by": "similarity", "count": 20}}]
    select(SelectJob.model_validate({"dataset": str(folder / "out"), "name": "most", "steps": steps}))
    return folder / "out"


def feed(dataset: Path, *columns: str, **more: Any) -> PairDataset:
    made = {name: more.pop(name) for name in ("transform", "tokenizer") if name in more}
    return PairDataset(FeedConfig(str(dataset), "most", columns=columns, **more), **made)


def test_each_picture_comes_with_its_own_caption_and_embeddings(dataset: Path) -> None:
    rows = {row["uid"]: row for row in rows_in(dataset)}
    columns = ("image", "caption_clean", "key", "image_embedding_tiny", "text_embedding_tiny", "similarity")
    seen = list(feed(dataset, *columns))
    assert len({sample["uid"] for sample in seen}) == 20
    for sample in seen:
        row = rows[sample["uid"]]
        assert sample["image"] == picture(int(row["key"]))
        assert sample["caption_clean"] == CAPTION.format(int(row["key"]))
        assert sample["similarity"] == pytest.approx(row["similarity"])
        for side in ("image", "text"):
            vector = sample[f"{side}_embedding_tiny"]
            assert vector.dtype == torch.float16
            assert np.array_equal(vector.numpy(), np.asarray(row[f"{side}_embedding_tiny"], np.float16))


def test_the_feed_fails_and_names_a_tar_that_was_truncated_or_deleted(dataset: Path) -> None:
    tar = dataset.parent / "00001.tar"
    whole = tar.read_bytes()
    try:
        tar.write_bytes(whole[:600])
        with pytest.raises(DamagedFileError, match=r"00001\.tar has changed: it ends in the middle of a picture"):
            list(feed(dataset, "image"))
        tar.unlink()
        with pytest.raises(FeedError, match=r"00001\.tar is missing"):
            list(feed(dataset, "image"))
    finally:
        tar.write_bytes(whole)


@pytest.mark.parametrize("name", ["/etc/hostname", "http://127.0.0.1:9/a.tar", "file:///etc/hostname", "../a.tar"])
def test_a_row_cannot_make_pair_dataset_open_a_file_outside_the_dataset(dataset: Path, name: str) -> None:
    shards = FeedShards.open(Store(str(dataset)), "most")
    with pytest.raises(OSError, match="neither a tar of"):
        shards.picture(name, 0, 5)


def test_the_transform_gets_the_picture_as_displayed_and_the_tokenizer_all_captions_of_a_batch(dataset: Path) -> None:
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    sizes: set[Any] = set()

    def transform(image: Image.Image) -> torch.Tensor:
        sizes.add((image.mode, image.size))
        return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1)

    batches = list(
        feed(dataset, "image", "caption_clean", "key", batch_size=8, transform=transform, tokenizer=tokenizer)
    )
    assert [len(batch["uid"]) for batch in batches] == [8, 8, 4]
    assert sizes == {("RGB", (320, 240))}
    for batch in batches:
        assert batch["image"].shape == (len(batch["uid"]), 3, 8, 8)
        assert torch.equal(batch["caption_clean"], tokenizer([CAPTION.format(int(key)) for key in batch["key"]]))
        for tensor, key in zip(batch["image"], batch["key"], strict=True):
            plain = np.asarray(Image.open(io.BytesIO(picture(int(key)))).resize((8, 8)), np.int16)
            assert np.abs(tensor.permute(1, 2, 0).numpy() - plain).max() <= 8  # decoders differ slightly


def test_without_the_image_column_no_picture_is_read(dataset: Path, tmp_path: Path) -> None:
    sources = list(dataset.parent.glob("*.tar"))
    for source in sources:
        source.rename(tmp_path / source.name)
    try:
        (batch,) = feed(dataset, "image_embedding_tiny", "text_embedding_tiny", batch_size=32)
        with pytest.raises(FeedError, match=r"0000[01]\.tar is missing"):
            list(feed(dataset, "image"))
    finally:
        for source in sources:
            (tmp_path / source.name).rename(source)
    assert batch["image_embedding_tiny"].shape == batch["text_embedding_tiny"].shape == (20, 128)


def test_pictures_inside_parquet_are_not_supported(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [picture(1), picture(2)], "caption": ["one", "two"]})
    pq.write_table(table, tmp_path / "in.parquet")
    sequentially(embed_job(tmp_path / "out", tmp_path / "in.parquet"))
    with pytest.raises(FeedError, match="no stored pictures that can each be read with one range read"):
        PairDataset(FeedConfig(str(tmp_path / "out")))
    assert len(list(PairDataset(FeedConfig(str(tmp_path / "out"), columns=("caption",))))) == 2


def embed_on_s3(endpoint: str, tar: Path) -> S3Config:
    """A dataset at s3://mill/out on one server, from a tar on the same server."""
    s3 = S3Config(endpoint=endpoint)
    Store("s3://mill", s3).create("in/0.tar", tar.read_bytes())
    values = {"source": {"paths": ["s3://mill/in"], "held": True}, "output": "s3://mill/out"}
    settings = {"models": [{"name": "tiny"}], "run": {"device": "cpu"}, "s3": s3.model_dump()}
    sequentially(BuildJob.model_validate({**values, **settings}))
    return s3


@pytest.mark.forks
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_two_datasets_on_two_s3_servers_are_read_side_by_side_in_one_process(tmp_path: Path, workers: int) -> None:
    """The bucket and folder are the same on both servers; only the settings differ."""
    numbers = (range(4), range(4, 8))
    with credentials(), s3_server("mill") as one, s3_server("mill") as other:
        loaders = []
        for endpoint, of_server in zip((one, other), numbers, strict=True):
            tar = write_tar(tmp_path / f"{of_server.start}.tar", samples(4, of_server.start))
            config = FeedConfig("s3://mill/out", columns=("image", "key"), s3=embed_on_s3(endpoint, tar))
            loaders.append(DataLoader(PairDataset(config), batch_size=None, num_workers=workers))
        pairs = list(zip(*loaders, strict=True))
    for of_server, rows in zip(numbers, zip(*pairs, strict=True), strict=True):
        assert {int(row["key"]) for row in rows} == set(of_server)
        assert all(row["image"] == picture(int(row["key"])) for row in rows)


def test_a_plain_contrastive_loop_learns_from_pair_dataset(dataset: Path) -> None:
    from pairmill.pipeline.encode.weights import TINY_FOLDER

    config = json.loads((TINY_FOLDER / "open_clip_config.json").read_text())["model_cfg"]
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    transform = open_clip.image_transform(config["vision_cfg"]["image_size"], is_train=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{TINY_FOLDER}")
    pairs = feed(dataset, "image", "caption_clean", batch_size=10, transform=transform, tokenizer=tokenizer)
    optimizer, loss, losses = torch.optim.AdamW(model.parameters(), 1e-3), open_clip.ClipLoss(), []
    for epoch in range(6):
        pairs.set_epoch(epoch)
        for batch in pairs:
            optimizer.zero_grad()
            value = loss(*model(batch["image"], batch["caption_clean"]))
            value.backward()
            optimizer.step()
            losses.append(value.item())
    assert np.mean(losses[-2:]) < 0.85 * np.mean(losses[:2])
