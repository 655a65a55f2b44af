"""Invariant: each key below a prefix becomes a row or part of a row, or counts as "passed over" with a reason.

Oracle: the keys that were put. Keys are plain text: `a/b`, `a//b`, `a/./b` and `a/b/` are four objects (s3fs#770, #953,
#983).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem

from bench.faulty_s3 import credentials
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.listing import list_path
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.plan import load_plan, make_plan
from pairmill.schemas.record import JobRecord
from tests.integration.test_embed import embed_job

Put = Callable[[str, bytes], None]

BUCKET = "keys"

keys = st.builds(
    "{}{}".format,
    st.lists(st.sampled_from(["a/", "b c/", "/", "./", ".h/", "l=%41/", "x.jpg/"]), max_size=3).map("".join),
    st.sampled_from(
        ["0.jpg", "0.txt", "1+%2F.png", "é#?.jpg", "é#?.txt", ".2.jpg", "readme", "[3]*.jpg", "~&;.JPG", ""]
    ),
)


@pytest.fixture(scope="module")
def put() -> Iterator[Put]:
    """Puts objects into the server's memory, because its API rejects some keys that real buckets contain."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    with credentials("http://{}:{}".format(*server.get_host_and_port())):
        S3FileSystem.clear_instance_cache()
        yield lambda key, body: backend.put_object(BUCKET, key, body)
    server.stop()
    backend.reset()  # moto's memory outlives the server, and bench.doors runs this again in the same process


prefixes = (f"t{number}" for number in count())


# Each example makes a plan, which takes long
@settings(max_examples=settings.default.max_examples // 10, suppress_health_check=[HealthCheck.too_slow])
@given(st.sets(keys, min_size=1, max_size=8))
@example({"0.jpg", "0.txt", "/0.jpg", "/0.txt", "//0.jpg", "a/0.jpg", "a//0.jpg"})
@example({"0.jpg", "", "a/", "x.jpg/", "x.jpg/0.jpg"})
@example({"/", "/0.jpg"})
@example({"0.jpg", "//", "///", "a//", "b c/"})
def test_each_key_is_a_row_or_part_of_one_or_passed_over(
    put: Put, tmp_path_factory: pytest.TempPathFactory, found: set[str]
) -> None:
    found = found | {"0.jpg"}  # without any picture, there is nothing to plan
    prefix = next(prefixes)
    for key in found:
        put(f"{prefix}/{key}", b"" if only_makes_a_folder(key) else b"x")
    output = tmp_path_factory.mktemp("out")
    job = embed_job(output, Path("in"), source={"paths": [f"s3://{BUCKET}/{prefix}"]})
    make_plan(JobRecord(job, "f" * 32), Store(str(output)))
    plan = load_plan(Store(str(output)))
    listed = {key for key in found if not only_makes_a_folder(key)}
    assert plan.seen == len(listed)
    assert plan.seen == plan.num_rows + plan.parts + sum(plan.passed_over.values())
    rows = Counter(
        str(uri) for index in output.glob("input/*.parquet") for uri in pq.read_table(index)["image_tar"].to_pylist()
    )
    pictures = {key for key in listed if key.lower().endswith((".jpg", ".png")) and not is_hidden(key)}
    assert rows == Counter(f"s3://{BUCKET}/{prefix}/{key}" for key in pictures)
    by_glob = list_path(f"s3://{BUCKET}/{prefix}/**/*.[jJ]*", Files()).files  # names of folders match too
    assert {uri for uri in by_glob if uri in rows} == {uri for uri in rows if ".jpg" in uri.lower()}
    assert len(by_glob) == len(set(by_glob))


def only_makes_a_folder(key: str) -> bool:
    """Whether to put an empty object, as consoles do to make a folder; other keys that end in a slash have content."""
    return (not key or key.endswith("/")) and len(key) % 2 == 0


def is_hidden(key: str) -> bool:
    return any(part.startswith(".") and part != "." for part in key.split("/"))
