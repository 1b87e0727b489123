# SPDX-License-Identifier: BSD-3-Clause
"""What the integration tests share: folders, files, processes that are gone in the end."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import DmTarget, Drive  # noqa: E402  pylint: disable=wrong-import-position


class Lab:
    """Makes files and targets, and takes them away."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._targets = []

    def file(self, name: str, megabytes: int) -> Path:
        path = self.folder / name
        with open(path, 'wb') as file:
            file.truncate(megabytes << 20)
        return path

    def target(self, **options) -> DmTarget:
        target = DmTarget(self.folder, **options)
        self._targets.append(target.process)
        return target

    def drive(self, files: list, **options) -> Drive:
        drive = Drive(self.folder, files, **options)
        self._targets.append(drive.process)
        return drive

    def close(self) -> None:
        for process in self._targets:
            process.kill()


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()
