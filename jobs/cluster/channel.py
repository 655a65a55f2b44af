"""Sends messages, and open files with them, between the driver and its worker processes on this machine.

A message is a pickled object. Both ends are pairmill's own processes, connected by a socket pair that has no name, so
no other process can send one.
"""

import errno
import os
import pickle
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Any

_HEADER = struct.Struct("<IB")
"""Number of bytes and of files."""
_MAX_FILES = 16
_NOT_INHERITABLE = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Channel:
    """One end of a connection. Several threads may send; only one may receive."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(True)  # the default is the user's
        self._socket = end
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """The socket's descriptor, for `selectors`."""
        return self._socket.fileno()

    def send(self, message: object, files: Sequence[int] = ()) -> None:
        """Send an object and descriptors of open files, which stay open here. Raises OSError if the other end is
        closed."""
        body = pickle.dumps(message)
        data = _HEADER.pack(len(body), len(files)) + body
        with self._sending:  # in one piece, if possible: the other end would wait for the rest
            sent = socket.send_fds(self._socket, [data], list(files))
            self._socket.sendall(memoryview(data)[sent:])

    def receive(self) -> tuple[Any, list[int]]:
        """The next message and its files, which the caller has to close.

        Raises EOFError if the other end is closed, and OSError if this process has too many open files.
        """
        try:
            head, files, _, _ = socket.recv_fds(self._socket, _HEADER.size, _MAX_FILES, _NOT_INHERITABLE)
            head += self._exactly(_HEADER.size - len(head)) if head else b""
            num_bytes, num_files = _HEADER.unpack(head)
            message = pickle.loads(self._exactly(num_bytes))  # noqa: S301
        except (ConnectionError, struct.error) as error:
            raise EOFError("the other process is gone") from error
        if len(files) != num_files:  # the kernel drops those that there is no descriptor for
            for file in files:
                os.close(file)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return message, files

    def close(self) -> None:
        """Close this end. The other end then receives EOFError."""
        self._socket.close()

    def _exactly(self, num_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < num_bytes:
            piece = self._socket.recv(num_bytes - len(data))
            if not piece:
                raise EOFError("the other process is gone")
            data += piece
        return bytes(data)
