# SPDX-License-Identifier: BSD-3-Clause
"""`spdk-dm backup`, run against a target, and a reader of what it writes that is not its own (docs/backup.md)."""

import json
import struct
import subprocess
from typing import NamedTuple, Set

from .process import program


class Backup:
    """Runs `spdk-dm backup` against a target."""

    def __init__(self, target):
        self.socket = target.process.socket

    def command(self, verb, *words):
        command = [program('spdk-dm'), 'backup', verb, *map(str, words)]
        return command if verb in ('verify', 'list') else command + ['--socket', self.socket]

    def run(self, verb, *words, **options):
        return subprocess.run(self.command(verb, *words), capture_output=True, text=True, timeout=120, check=False,
                              **options)

    def start(self, verb, *words):
        """In the background. It is to be waited for."""
        return subprocess.Popen(self.command(verb, *words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def __call__(self, verb, *words, said='', **options):
        done = self.run(verb, *words, **options)
        assert done.returncode == 0 and said in done.stderr and bool(said) == bool(done.stderr), (words, done)
        return done.stdout

    def refused(self, verb, *words):
        done = self.run(verb, *words)
        assert done.returncode == 1 and done.stderr.startswith('spdk-dm: '), done
        return done.stderr


class Stream(NamedTuple):
    """What a backup holds."""
    header: dict
    data: Set[int]
    holes: Set[int]


def read_stream(path) -> Stream:
    """Which blocks are in a backup; their contents are not looked at."""
    content = path.read_bytes()
    assert content.startswith(b'spdk-dm backup ')
    at, header, data, holes = 16, None, set(), set()
    while at < len(content):
        kind, length = struct.unpack_from('<cI', content, at)
        payload = content[at + 5:at + 5 + length]
        at += 5 + length + 4
        if kind == b'H':
            header = json.loads(payload)
            continue
        if kind == b'E':
            end = json.loads(payload)
            assert (end['data_blocks'], end['unmapped_blocks'], at) == (len(data), len(holes), len(content))
            return Stream(header, data, holes)
        if kind == b'D':
            first, size = struct.unpack_from('<QI', payload)
            data |= set(range(first, first + size // header['block_bytes']))
        else:
            first, count = struct.unpack_from('<QQ', payload)
            holes |= set(range(first, first + count))
    raise AssertionError(f'{path} has no end')
