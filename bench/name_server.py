"""Runs a slow name server for benchmarks. It resolves host names to loopback addresses, and fails for some of them.

A process started by `command` sees it as the machine's only name server: /etc/resolv.conf is replaced in a mount
namespace for that process, which requires root and util-linux's `unshare`.
"""

import asyncio
import multiprocessing
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

ADDRESS = "127.0.0.77"
_TTL_S = 60


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, addresses: Mapping[str, str], broken: frozenset[str], delay_s: float) -> None:
        self.addresses, self.broken, self.delay_s = addresses, broken, delay_s

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, client: Any) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        if name in self.broken:
            reply.set_rcode(dns.rcode.SERVFAIL)
        elif name not in self.addresses:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            reply.answer.append(dns.rrset.from_text(question.name, _TTL_S, "IN", "A", self.addresses[name]))
        asyncio.get_running_loop().call_later(self.delay_s, self.transport.sendto, reply.to_wire(), client)


@contextmanager
def name_server(addresses: Mapping[str, str], broken: frozenset[str], delay_s: float) -> Iterator[None]:
    """Answer for `addresses` (name -> IPv4) after `delay_s`; SERVFAIL for `broken`, NXDOMAIN for all others."""

    def serve(ready: Any) -> None:
        async def run() -> None:
            make = lambda: _Protocol(addresses, broken, delay_s)  # noqa: E731
            await asyncio.get_running_loop().create_datagram_endpoint(make, (ADDRESS, 53))
            ready.send(True)
            await asyncio.Event().wait()

        asyncio.run(run())

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=serve, args=(there,), daemon=True)
    process.start()
    there.close()  # so that recv() raises if the server dies
    try:
        here.recv()
        yield
    finally:
        process.terminate()
        process.join()


def command(folder: Path, words: list[str]) -> list[str]:
    """The command that runs `words` with this name server."""
    config = folder / "resolv.conf"
    config.write_text(f"nameserver {ADDRESS}\n")
    script = f"mount --bind {shlex.quote(str(config))} /etc/resolv.conf && exec {shlex.join(words)}"
    return ["unshare", "--mount", "sh", "-c", script]
