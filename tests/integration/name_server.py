"""Runs a name server on loopback, over UDP, with responses that a test chooses."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class NameServer:
    """`addresses`: name -> one list of addresses per query in turn (the last one repeats); an empty value: no response.

    Other names do not exist. `queries` counts A queries per name. A packet that the client sends again, because the
    response took too long on a busy machine, belongs to the same query and gets the same response.
    """

    def __init__(self, addresses: dict[str, list[list[str]]], delay_s: float = 0.0) -> None:
        self.addresses = addresses
        self.queries: Counter[str] = Counter()
        self._turns: dict[tuple[str, int], int] = {}  # by name and id of the query
        self._delay_s = delay_s
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, name="names", daemon=True)

    @property
    def address(self) -> str:
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    def __enter__(self) -> "NameServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, client = self._socket.recvfrom(65_535)
            if not data:
                return
            reply = self._reply(dns.message.from_wire(data))
            if reply is not None:
                time.sleep(self._delay_s)
                self._socket.sendto(reply.to_wire(), client)

    def _reply(self, query: dns.message.Message) -> dns.message.Message | None:
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        if name not in self.addresses:
            reply.set_rcode(dns.rcode.NXDOMAIN)
            return reply
        responses = self.addresses[name]
        if not responses:
            return None
        if question.rdtype == dns.rdatatype.A:
            turn = self._turns.setdefault((name, query.id), self.queries[name])
            self.queries[name] = max(self.queries[name], turn + 1)
            addresses: Sequence[str] = responses[min(turn, len(responses) - 1)]
            if addresses:
                reply.answer.append(dns.rrset.from_text(question.name, 0, "IN", "A", *addresses))
        return reply
