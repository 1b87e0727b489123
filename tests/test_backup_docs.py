# SPDX-License-Identifier: BSD-3-Clause
"""What docs/backup.md says of era and ploop targets, done."""

import os
import re
import subprocess
import sys
from pathlib import Path

from harness.backup import Backup
from harness.guest import contents, write
from harness.pool import aio, random_file
from harness.process import program

ROOT = Path(__file__).resolve().parents[1]
# Longer than anything here takes on a busy machine: a hang guard.
HANG_SECONDS = 120


def test_documentation(lab):
    """Every command of the chapters works, in its order, and what is restored is what the disk was."""
    blocks = re.findall(r'```sh\n(.*?)```', (ROOT / 'docs/backup.md').read_text(), re.S)
    assert [block.count('\n') for block in blocks] == [5, 5]
    target = lab.target(memory_mb=512)
    for name, megabytes in {'disk': 32, 'eras': 4, 'cow': 40, 'image': 64, 'spare': 32}.items():
        aio(target, name, random_file(lab.folder / f'{name}.bdev', megabytes))
    for name in ('eras', 'image'):
        write(lab.folder, target.rpc, name, 'write -P 0 0 1M')
    path = os.pathsep.join(filter(None, [str(ROOT / 'rpc' / 'python'), os.environ.get('PYTHONPATH')]))
    env = dict(os.environ, PYTHONPATH=path)
    rpc_py = f'{sys.executable} {os.environ["SPDK_DM_RPC_PY"]} -s {target.process.socket}'
    for block, (disk, copy) in zip(blocks, (('vol', 'disk.raw'), ('guest', None))):
        folder = lab.folder / disk
        folder.mkdir()
        for line in block.splitlines():
            command = line.replace('spdk-dm', program('spdk-dm'), 1).replace('rpc.py', rpc_py, 1)
            if line.startswith('spdk-dm'):
                command += f' -s {target.process.socket}'
            done = subprocess.run(command.split(), env=env, cwd=folder, capture_output=True, text=True,
                                  timeout=HANG_SECONDS, check=False)
            assert done.returncode == 0 and done.stderr == '', (line, done)
            if 'full' in line:
                write(lab.folder, target.rpc, disk, 'write -P 5 1M 3M', 'write -P 6 20M 100k')
        found = (folder / copy).read_bytes() if copy else contents(lab.folder, target.rpc, 'spare')
        assert found == contents(lab.folder, target.rpc, disk)
        Backup(target)('verify', folder / 'monday.backup', folder / 'tuesday.backup')
