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


@pytest.mark.parametrize('words, told', [
    (['demo'], 'accepted by 0.9 and 1.1'),
    *(([name, '--short'], 'right at every step') for name in ('backup', 'migrate', 'merge', 'replicate')),
], ids=lambda value: value[0] if isinstance(value, list) else '')
def test_use_case(words, told):
    done = subprocess.run([sys.executable, str(CONFIG / words[0]), *words[1:]], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False, timeout=HANG_SECONDS)
    assert done.returncode == 0 and told in done.stdout, done.stdout
