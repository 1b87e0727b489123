# SPDX-License-Identifier: BSD-3-Clause
"""What a guest does with a bdev: QEMU reads and writes it over an NBD export."""

import subprocess


def contents(folder, rpc, bdev):
    """All of a bdev."""
    path, copy = folder / 'read.nbd', folder / 'read'
    uri = rpc.call('nbd_export_create', bdev_name=bdev, path=str(path))
    subprocess.run(['timeout', '60', 'qemu-img', 'convert', '-f', 'raw', '-O', 'raw', uri, copy], check=True)
    rpc.call('nbd_export_delete', path=str(path))
    return copy.read_bytes()


def write(folder, rpc, bdev, *commands):
    """qemu-io commands."""
    path = folder / 'write.nbd'
    uri = rpc.call('nbd_export_create', bdev_name=bdev, path=str(path), writable=True)
    words = [word for command in commands for word in ('-c', command)]
    subprocess.run(['timeout', '60', 'qemu-io', '-f', 'raw', *words, uri], check=True, capture_output=True)
    rpc.call('nbd_export_delete', path=str(path))


def random_writes(rng, size_mib, count):
    """qemu-io commands: writes and discards of whole and part blocks of 64 KiB."""
    for _ in range(count):
        at, length = rng.randrange(0, size_mib * 16 - 16) * 64, rng.randrange(1, 8) * 64
        if rng.random() < 0.3:
            yield f'discard {at}k {length}k'
        else:
            yield f'write -P {rng.randrange(1, 256)} {at + rng.randrange(0, 60)}k {length}k'
