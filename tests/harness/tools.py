# SPDX-License-Identifier: BSD-3-Clause
"""thin-provisioning-tools of both generations: Debian 12's 0.9 and the strict 1.1."""

import os
import subprocess
from pathlib import Path


def strict_tool(name: str) -> list:
    folder = os.environ.get('SPDK_DM_STRICT_TOOLS')
    if not folder:
        raise SystemExit('SPDK_DM_STRICT_TOOLS is not set: run this by `make`')
    return [str(Path(folder) / 'pdata_tools'), name]


def _run(command: list) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    if done.returncode != 0:
        raise AssertionError(f'{" ".join(command)} ended with {done.returncode}:\n{done.stdout}')
    return done.stdout


def thin_check(metadata: Path) -> None:
    """Both generations accept the metadata."""
    _run(['thin_check', str(metadata)])
    _run(strict_tool('thin_check') + [str(metadata)])


def thin_dump(metadata: Path) -> str:
    return _run(['thin_dump', str(metadata)])
