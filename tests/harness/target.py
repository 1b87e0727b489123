# SPDX-License-Identifier: BSD-3-Clause
"""The two targets of a set-up: a "drive" over NVMe/TCP, and the one with the plugin on top of it."""

import json
import os
import socket
from pathlib import Path
from typing import Optional

from .process import SpdkProcess, spdk_major

ADDRESS = '127.0.0.1'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


def nqn(name: str) -> str:
    return f'nqn.2016-06.io.spdk:{name}'


def attach_params(name: str, port: int, subsystem: str) -> dict:
    return {'name': name, 'trtype': 'tcp', 'adrfam': 'ipv4', 'traddr': ADDRESS, 'trsvcid': str(port),
            'subnqn': nqn(subsystem)}


def export(process: SpdkProcess, subsystem: str, bdevs: list, port: int) -> None:
    """Exports bdevs of a running target over NVMe/TCP."""
    rpc = process.rpc
    try:
        rpc.call('nvmf_create_transport', trtype='TCP')
    except Exception as error:  # pylint: disable=broad-except
        if 'already exists' not in str(error):
            raise
    rpc.call('nvmf_create_subsystem', nqn=nqn(subsystem), allow_any_host=True,
             serial_number='SPDKDM00000001')
    for bdev in bdevs:
        rpc.call('nvmf_subsystem_add_ns', nqn=nqn(subsystem), namespace={'bdev_name': bdev})
    rpc.call('nvmf_subsystem_add_listener', nqn=nqn(subsystem),
             listen_address={'trtype': 'tcp', 'adrfam': 'ipv4', 'traddr': ADDRESS,
                             'trsvcid': str(port)})


def retry_option() -> str:
    """What SPDK calls the number of times its NVMe bdevs retry an I/O."""
    return 'retry_count' if spdk_major() < 22 else 'bdev_retry_count'


def host_config(path: Path, name: str, port: int, subsystem: str, **options) -> Path:
    """The JSON configuration of a host that attaches an exported bdev as `<name>n1`. `options` are
    those of SPDK's NVMe bdevs."""
    params = {retry_option(): 0, 'timeout_us': 0, **options}
    config = {'subsystems': [{'subsystem': 'bdev', 'config': [
        {'method': 'bdev_nvme_set_options', 'params': params},
        {'method': 'bdev_nvme_attach_controller', 'params': attach_params(name, port, subsystem)},
    ]}]}
    path.write_text(json.dumps(config, indent=2))
    return path


class Drive:
    """A spdk_tgt that serves files as the namespaces of an NVMe/TCP "drive"."""

    def __init__(self, folder: Path, files: list, block_bytes: int = 512,
                 port: Optional[int] = None):
        self.port = port or free_port()
        self.process = SpdkProcess([os.environ['SPDK_DM_TGT']], folder, 'drive', core_mask='0x1',
                                   memory_mb=256)
        self.process.wait_ready()
        names = []
        for i, file in enumerate(files):
            names.append(f'file{i}')
            self.process.rpc.call('bdev_aio_create', name=f'file{i}', filename=str(file),
                                  block_size=block_bytes)
        export(self.process, 'drive', names, self.port)


class DmTarget:
    """A stock spdk_tgt with the plugin preloaded (or spdk_dm_tgt)."""

    def __init__(self, folder: Path, name: str = 'target', core_mask: str = '0x2',
                 config: Optional[Path] = None, command: Optional[list] = None, memory_mb: int = 384):
        command = list(command or [os.environ['SPDK_DM_TGT']])
        plugin = command[0] == os.environ['SPDK_DM_TGT']
        if config is not None:
            command += ['--json', str(config)]
        self.process = SpdkProcess(command, folder, name, plugin=plugin, core_mask=core_mask,
                                   memory_mb=memory_mb)
        self.rpc = self.process.rpc
        self.process.wait_ready()

    def attach_drive(self, drive: Drive) -> list:
        """The drive's namespaces as bdevs."""
        return self.rpc.call('bdev_nvme_attach_controller',
                             **attach_params('drive', drive.port, 'drive'))

    def stop(self) -> None:
        code = self.process.stop()
        if code != 0:
            raise AssertionError(f'{self.process.name} ended with {code}:\n{self.process.tail()}')
