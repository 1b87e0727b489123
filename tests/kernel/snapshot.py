# SPDX-License-Identifier: BSD-3-Clause
"""Origins and snapshots in the kernel: shell functions for its scripts."""

# The origin is the first disk, the COW device the second.
FUNCTIONS = r'''
origin=/dev/ubda cow=/dev/ubdb
size=$(blockdev --getsz $origin)
base_open() { dmsetup create base --noudevsync --table "0 $size snapshot-origin $origin"; }
snap_open() {  # store letter, chunk size
    dmsetup create snap --noudevsync --table "0 $size snapshot $origin $cow ${1:-P} ${2:-16}"
}
merge_open() { dmsetup create base --noudevsync --table "0 $size snapshot-merge $origin $cow P ${1:-16}"; }
close() { dmsetup remove --noudevsync "$1"; }
write() {  # device, offset in bytes, file: pieces of 4096 bytes
    dd if="$3" of="/dev/mapper/$1" bs=4096 seek="$2" oflag=seek_bytes conv=notrunc,fsync status=none
}
sum() { echo "sum_$1=$(sha256sum <"/dev/mapper/$1" | cut -d ' ' -f 1)"; }
show() { echo "status_$1=$(dmsetup status "$1")"; echo "table_$1=$(dmsetup table "$1")"; }
merged() {  # waits until the merge has finished
    while :; do
        set -- $(dmsetup status base | cut -d ' ' -f 4-)
        [ "${1%/*}" != "$2" ] || return 0
        sleep 0.1
    done
}
'''


def script(*lines: str) -> str:
    return '\n'.join([FUNCTIONS, *lines])
