# SPDX-License-Identifier: BSD-3-Clause
"""A JSON-RPC client that keeps the error object."""

import json
import os
import socket
import subprocess
import sys


class RpcError(Exception):
    """An error answer: code (a negative errno, or JSON-RPC's own) and message."""

    def __init__(self, method: str, error: dict):
        super().__init__(f"{method}: {error['code']}: {error['message']}")
        self.code: int = error['code']
        self.message: str = error['message']


class RpcClient:
    def __init__(self, path: str, timeout: float = 60.0):
        self._path = path
        self._timeout = timeout

    def call(self, method: str, **params):
        """Calls a method. A connection per call, so that a killed target leaves nothing behind."""
        request = {'jsonrpc': '2.0', 'id': 1, 'method': method}
        if params:
            request['params'] = params
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self._timeout)
            connection.connect(self._path)
            connection.sendall(json.dumps(request).encode())
            received = b''
            while True:
                chunk = connection.recv(1 << 16)
                if not chunk:
                    raise ConnectionError(f'{method}: the target closed the connection')
                received += chunk
                # SPDK ends an answer with a newline. Parsing a long one after each chunk would take long.
                if not received.endswith(b'\n') and len(received) > 1 << 16:
                    continue
                try:
                    answer = json.loads(received)
                except ValueError:
                    continue
                break
        if 'error' in answer:
            raise RpcError(method, answer['error'])
        return answer['result']


def tree_rpc(target, *words):
    """SPDK's own rpc.py."""
    done = subprocess.run([sys.executable, os.environ['SPDK_DM_RPC_PY'], '-s', target.process.socket,
                           *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
