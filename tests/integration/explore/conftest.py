"""Provides one dataset, one server and one browser for all tests of the explorer."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser

from pairmill.jobs.build import build
from pairmill.jobs.explore import ExploreOptions, explore
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.explore.explorer import Explorer
from pairmill.pipeline.explore.security import Guard
from tests.integration.browser import chromium
from tests.integration.conftest import run_in_this_process
from tests.integration.explore.site import DESKTOP, PAIRS, Served, Tab, drawn, new_tab
from tests.integration.test_embed import embed_job


@pytest.fixture(scope="package")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("explore")
    pq.write_table(pa.Table.from_pylist(drawn(PAIRS)), folder / "in.parquet")
    with pytest.MonkeyPatch.context() as patch:
        with patch.context() as during_build:
            run_in_this_process(during_build)
            build(embed_job(folder / "out", folder / "in.parquet", shard_rows=50))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder / "out"


@pytest.fixture(scope="package")
def served(dataset: Path) -> Iterator[Served]:
    """The server, in this process so that tests can see what it reads."""
    ready, end, found = threading.Event(), threading.Event(), list[Served]()

    def on_ready(guard: Guard, explorer: Explorer) -> None:
        found.append(Served(guard.address.rstrip("/"), explorer, guard))
        ready.set()
        end.wait()
        raise KeyboardInterrupt

    def run() -> None:
        with pytest.raises(KeyboardInterrupt):
            explore(Store(str(dataset)), ExploreOptions(port=0, labels="browser"), on_ready)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(60)
    yield found[0]
    end.set()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture
def tab(browser: Browser, served: Served) -> Iterator[Tab]:
    context = browser.new_context(viewport=DESKTOP)  # type: ignore[arg-type]
    yield new_tab(context)
    context.close()
