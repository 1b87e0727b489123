# SPDX-License-Identifier: BSD-3-Clause
"""The use cases on real parts, one script each (spdk-config/), in their short form: they compare what they promise by
themselves, and say where something is not as it was."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).resolve().parents[1] / 'spdk-config'
# A hang guard.
HANG_SECONDS = 500


@pytest.mark.parametrize('name', ['backup', 'migrate', 'merge', 'replicate'])
def test_use_case(name):
    done = subprocess.run([sys.executable, str(CONFIG / name), '--short'], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False, timeout=HANG_SECONDS)
    assert done.returncode == 0 and 'right at every step' in done.stdout, done.stdout
