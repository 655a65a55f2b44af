"""S3 with faults: throttling, cut connections, lost replies, no permission; and how many requests a start takes."""

from collections.abc import Iterator

import pytest

from bench.faulty_s3 import Faults, FaultyS3, credentials, s3_server
from pipeline.storage import Store, configure
from schemas.s3 import FROM_ENVIRONMENT, S3Config


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server("mill") as url, credentials():
        yield url


@pytest.fixture
def faulty(server: str) -> Iterator[FaultyS3]:
    proxy = FaultyS3(server)
    configure(S3Config(endpoint=proxy.url))
    yield proxy
    configure(FROM_ENVIRONMENT)
    proxy.close()


def test_reads_and_writes_outlast_throttling_and_cut_connections(faulty: FaultyS3) -> None:
    store = Store("s3://mill/throttled")
    faulty.faults = Faults(slow_down=0.15, reset=0.1)
    for number in range(30):
        assert store.create(f"a/{number}", b"content %d" % number)
    assert len(store.list("a")) == 30
    assert [store.read(f"a/{number}") for number in range(30)] == [b"content %d" % number for number in range(30)]
    assert sum(faulty.requests.values()) > 66  # some were tried again


@pytest.mark.parametrize(("num_bytes", "request_lost"), [(10, "PUT /mill/lost/10"), (110_000_000, "uploadId")])
def test_a_write_whose_reply_was_lost_is_there_and_says_taken(
    faulty: FaultyS3, num_bytes: int, request_lost: str
) -> None:
    """Small: one PUT. Large: in parts; the reply to one of them is lost, and then that to joining them."""
    store = Store("s3://mill/lost")
    faulty.faults = Faults(lose_reply_to=request_lost)
    first = store.create(f"{num_bytes}/a", bytes(num_bytes))
    assert faulty.faults.lose_reply_to is None
    assert first == (request_lost == "uploadId")  # a part is sent again, a PUT finds its own object
    assert store.num_bytes(f"{num_bytes}/a") == num_bytes
    assert not store.create(f"{num_bytes}/a", b"another")
    if request_lost == "uploadId":
        faulty.faults = Faults(lose_reply_to="POST /mill/lost/110000000/b?uploadId")
        assert not store.create(f"{num_bytes}/b", bytes(num_bytes))
        assert faulty.faults.lose_reply_to is None
        assert store.num_bytes(f"{num_bytes}/b") == num_bytes
