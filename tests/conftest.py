# SPDX-License-Identifier: BSD-3-Clause
"""What the integration tests share: folders, files, processes that are gone in the end."""

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import DmTarget, Drive  # noqa: E402  pylint: disable=wrong-import-position
from harness.process import end_all  # noqa: E402  pylint: disable=wrong-import-position

# A failing comparison of theirs shows both sides, as in a test.
pytest.register_assert_rewrite('harness.pool')


def pytest_configure():
    """SIGTERM is an orderly end: fixtures are torn down, and with them every process."""
    def stop(number, _):
        pytest.exit(f'ended by signal {number}', returncode=128 + number)
    signal.signal(signal.SIGTERM, stop)


class Lab:
    """Makes files and targets in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def file(self, name: str, megabytes: int) -> Path:
        path = self.folder / name
        with open(path, 'wb') as file:
            file.truncate(megabytes << 20)
        return path

    def target(self, **options) -> DmTarget:
        return DmTarget(self.folder, **options)

    def drive(self, files: list, **options) -> Drive:
        return Drive(self.folder, files, **options)


@pytest.fixture
def lab(tmp_path):
    try:
        yield Lab(tmp_path)
    finally:
        end_all()
