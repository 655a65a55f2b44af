"""A name server on loopback that answers as a test says, over UDP."""

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
    """`answers`: name -> addresses, one list per query in turn (the last one stays); silence for an empty dict value.

    A name that it does not know does not exist. `asked` counts A queries per name.
    """

    def __init__(self, answers: dict[str, list[list[str]]], delay_s: float = 0.0) -> None:
        self.answers = answers
        self.asked: Counter[str] = Counter()
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
        if name not in self.answers:
            reply.set_rcode(dns.rcode.NXDOMAIN)
            return reply
        turns = self.answers[name]
        if not turns:
            return None
        if question.rdtype == dns.rdatatype.A:
            addresses: Sequence[str] = turns[min(self.asked[name], len(turns) - 1)]
            self.asked[name] += 1
            if addresses:
                reply.answer.append(dns.rrset.from_text(question.name, 0, "IN", "A", *addresses))
        return reply
