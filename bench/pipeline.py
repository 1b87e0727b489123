# SPDX-License-Identifier: BSD-3-Clause
"""Many RPCs over one connection, several under way at a time."""

import json
import socket

from harness import RpcError

# SPDK's buffer for what arrives of a connection takes 32 KiB; these calls are short.
UNDER_WAY = 32


class Pipeline:
    def __init__(self, path: str, timeout: float = 600.0):
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(timeout)
        self._connection.connect(path)
        self._received = ''
        self._decoder = json.JSONDecoder()

    def __enter__(self) -> 'Pipeline':
        return self

    def __exit__(self, *_) -> None:
        self._connection.close()

    def _answer(self) -> dict:
        while True:
            self._received = self._received.lstrip()
            try:
                answer, end = self._decoder.raw_decode(self._received)
            except ValueError:
                chunk = self._connection.recv(1 << 16)
                if not chunk:
                    raise ConnectionError('the target closed the connection') from None
                self._received += chunk.decode('ascii')
                continue
            self._received = self._received[end:]
            return answer

    def call_all(self, method: str, every: list) -> list:
        """Calls a method with each of the parameters; results in their order."""
        results = [None] * len(every)
        sent = answered = 0
        while answered < len(every):
            while sent < len(every) and sent - answered < UNDER_WAY:
                request = {'jsonrpc': '2.0', 'id': sent, 'method': method, 'params': every[sent]}
                self._connection.sendall(json.dumps(request).encode())
                sent += 1
            answer = self._answer()
            if 'error' in answer:
                raise RpcError(method, answer['error'])
            results[answer['id']] = answer['result']
            answered += 1
        return results
