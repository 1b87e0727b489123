# SPDX-License-Identifier: BSD-3-Clause
"""What docs/replication.md says, done."""

import os
import re
import subprocess
from pathlib import Path

from harness.pool import wait_for
from harness.process import launch, program
from harness.replication import HANG_SECONDS, Pair
from harness.target import free_port

ROOT = Path(__file__).resolve().parents[1]


def test_documentation(lab):
    """Every command of docs/replication.md works, in its order, and does what stands there."""
    blocks = re.findall(r'```sh\n(.*?)```', (ROOT / 'docs/replication.md').read_text(), re.S)
    commands = [line.split('$ ', 1) for block in blocks for line in block.splitlines()]
    assert len(commands) == 15
    pair = Pair(lab, with_drive=False)
    sides = {'source': pair.source, 'replica': pair.replica, 'both': pair.source}
    bdev = pair.source.device(1)
    pair.source.fill(bdev, 1)
    state = pair.source.contents(bdev)
    # Ports of the documentation may be in use here.
    ports = {}
    for side, command in commands:
        side = sides[side]
        if ' demote ' in command:
            side.write(bdev, 'write -P 9 0 64k')
            side.rpc('thin_deactivate', bdev_name=bdev)
        if '--token-file' in command and ' run ' in command:
            # It went by demote.
            bdev = side.device(1)
        if ' run copies ' in command:
            side.write_blocks('disk', 3)
            state = side.contents('disk')
        for port in re.findall(r'127\.0\.0\.1:(\d+)', command):
            command = command.replace(port, str(ports.setdefault(port, free_port())))
        command = command.replace('spdk-dm', program('spdk-dm'), 1)
        words = command if '>' in command else f'{command} -s {side.socket}'
        stays = ' receive ' in command or '--interval' in command
        process = launch(['bash', '-c', f'exec {words}'], dict(os.environ), subprocess.PIPE, cwd=lab.folder, text=True)
        if ' receive ' in command:
            # It says where.
            assert 'receiving on 127.0.0.1' in process.stdout.readline()
        elif '--interval' in command:
            wait_for(lambda: (pair.source.of_device(1) or {}).get('transfers') == 1)
            process.kill()
        if stays:
            continue
        output = process.communicate(timeout=HANG_SECONDS)[0]
        assert process.returncode == 0, (command, output)
        if ' promote ' in command:
            assert pair.replica.contents('disk') == state
        if ' run copies ' in command:
            assert pair.source.newest(pair.source.status()['chain'])[1] == state
