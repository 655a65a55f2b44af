"""Tests messages between the driver and its workers: they arrive whole, in order, with their files in memory."""

import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairmill.jobs.cluster.channel import Channel
from pairmill.jobs.cluster.shared_bytes import SharedBytes


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = map(Channel, socket.socketpair())
    yield one, other
    one.close()
    other.close()


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 2_000_000), st.lists(st.binary(min_size=1), max_size=3)), max_size=4))
def test_messages_of_any_size_arrive_in_order_with_their_files(sent: list[tuple[int, list[bytes]]]) -> None:
    one, other = map(Channel, socket.socketpair())
    got = []

    def receive() -> None:
        for _ in sent:
            message, files = other.receive()
            got.append((message, [bytes(SharedBytes(file).mapped()) for file in files]))

    thread = threading.Thread(target=receive)
    thread.start()
    for size, contents in sent:
        shared = [SharedBytes.of(content) for content in contents]
        one.send(b"x" * size, [each.file for each in shared])
    thread.join()
    assert got == [(b"x" * size, contents) for size, contents in sent]
    one.close()
    with pytest.raises(EOFError):
        other.receive()
    with pytest.raises(OSError, match="Broken pipe"):
        other.send(None)
    other.close()


def test_a_message_that_breaks_off_is_the_end(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    one._socket.sendall(b"\x09\0\0\0\0half")
    one.close()
    with pytest.raises(EOFError):
        other.receive()


def test_memory_stays_mapped_after_its_descriptor_is_closed_and_is_freed_with_the_last_buffer() -> None:
    def mappings() -> int:
        with open("/proc/self/maps") as maps:
            return maps.read().count("memfd:pairmill")

    shared = SharedBytes.of(b"content" * 1000)
    assert os.fstat(shared.file).st_size == 7000
    buffer = shared.mapped()
    del shared
    assert bytes(buffer) == b"content" * 1000
    assert mappings() == 1
    del buffer
    assert mappings() == 0
