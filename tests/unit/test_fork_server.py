"""Tests which part of a process uses the server that was started ahead. Here, it starts no process."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest

from pairmill.jobs.cluster.fork_server import ForkServer, end_server_ahead, fork_server, started_ahead


def server_here() -> ForkServer:
    with fork_server() as server:
        return server


def test_a_job_uses_the_server_that_its_thread_has_started_ahead() -> None:
    with started_ahead():
        ahead = server_here()
        with started_ahead():
            assert server_here() is ahead
        assert server_here() is ahead
    assert server_here() is not ahead


def test_neither_other_threads_nor_forks_of_the_process_use_or_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even with a copied context, as in callbacks of asyncio."""
    closed: list[ForkServer] = []
    monkeypatch.setattr(ForkServer, "close", lambda server: closed.append(server))
    with started_ahead():
        ahead = server_here()
        with ThreadPoolExecutor(1) as other:
            assert other.submit(copy_context().run, server_here).result() is not ahead
            other.submit(copy_context().run, end_server_ahead).result()
        with monkeypatch.context() as fork:
            fork.setattr(os, "getpid", lambda: 0)
            assert server_here() is not ahead
            end_server_ahead()
        assert ahead not in closed
        end_server_ahead()
        assert ahead in closed


def test_nothing_starts_ahead_of_what_only_explains_a_job() -> None:
    with started_ahead(unless=True):
        assert server_here() is not server_here()
