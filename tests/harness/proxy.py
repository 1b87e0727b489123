# SPDX-License-Identifier: BSD-3-Clause
"""A network that can be cut: a TCP proxy that counts what it passes on."""

import socket
import threading

from .target import ADDRESS


class Proxy:
    """Passes connections on to `port`; `self.port` is where it listens."""

    def __init__(self, port):
        self.to_receiver = 0
        self._target = port
        self._cut_at = None
        self._open = []
        self._lock = threading.Lock()
        self._listener = socket.create_server((ADDRESS, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection((ADDRESS, self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open += [near, far]
            for source, sink, counts in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass, args=(source, sink, counts), daemon=True).start()

    def _pass(self, source, sink, counts):
        try:
            while True:
                data = source.recv(1 << 16)
                if not data:
                    break
                sink.sendall(data)
                if counts:
                    self.to_receiver += len(data)
                    if self._cut_at is not None and self.to_receiver >= self._cut_at:
                        self._cut_at = None
                        self.cut()
        except OSError:
            pass
        for end in (source, sink):
            # The other end is told, also while the other direction waits.
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        """Ends all connections."""
        with self._lock:
            ends, self._open = self._open, []
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut_after(self, count):
        """Ends all connections when so many more bytes have gone to the receiver."""
        self._cut_at = self.to_receiver + count

    def close(self):
        self._listener.close()
        self.cut()
