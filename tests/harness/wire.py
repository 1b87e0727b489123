# SPDX-License-Identifier: BSD-3-Clause
"""A TCP connection that can be cut: a relay in front of a port."""

import socket
import threading
import time
from typing import Optional

from .pool import wait_for

ADDRESS = '127.0.0.1'


class Wire:
    """Relays connections to `port` on to `to_port` until they are cut. After a cut the far end is
    heard to its end: when it has closed, it has done with all it received, and only then new
    connections pass. So nothing old can overtake what they bring."""

    def __init__(self, port: int, to_port: int):
        self.port = port
        self._to_port = to_port
        self._near: set = set()
        self._ending: set = set()
        self._lock = threading.Lock()
        self._listener: Optional[socket.socket] = socket.create_server((ADDRESS, port), backlog=32)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Cuts all connections; how many there were."""
        with self._lock:
            near = list(self._near)
            self._ending.update(near)
        for end in near:
            _shut(end, socket.SHUT_RDWR)
        return len(near)

    def wait_closed(self) -> None:
        """Until the far end has closed all connections that were ever cut or left."""
        wait_for(lambda: not self._near, seconds=120)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        while self._ending:
            time.sleep(0.01)
        try:
            far = socket.create_connection((ADDRESS, self._to_port))
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._near.add(near)
        onward = threading.Thread(target=self._onward, args=(near, far), daemon=True)
        onward.start()
        _pump(far, near)
        # The far end has closed.
        _shut(near, socket.SHUT_RDWR)
        _shut(far, socket.SHUT_RDWR)
        onward.join()
        with self._lock:
            self._near.discard(near)
            self._ending.discard(near)
        near.close()
        far.close()

    def _onward(self, near: socket.socket, far: socket.socket) -> None:
        _pump(near, far)
        _shut(far, socket.SHUT_WR)


def _shut(end: socket.socket, how: int) -> None:
    try:
        end.shutdown(how)
    except OSError:
        pass


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Passes on what comes. A sink that has gone does not keep the source from being heard out."""
    buffer = memoryview(bytearray(1 << 18))
    gone = False
    while True:
        try:
            length = source.recv_into(buffer)
        except OSError:
            length = 0
        if length == 0:
            break
        try:
            if not gone:
                sink.sendall(buffer[:length])
        except OSError:
            gone = True
