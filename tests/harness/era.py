# SPDX-License-Identifier: BSD-3-Clause
"""Era targets on files, and what Debian's tools and a model say of them."""

from pathlib import Path
from typing import Iterable, List, Set
from xml.etree import ElementTree

from .pool import aio
from .tools import _run, strict_tool

BLOCK = 65536


def era_on_files(lab, target, meta_mb=4, origin_mb=64, blocks=(512, 512), **params):
    """The era target 'era' on AIO bdevs 'meta' and 'origin'."""
    meta, origin = lab.file('meta', meta_mb), lab.file('origin', origin_mb)
    aio(target, 'meta', meta, blocks[0])
    aio(target, 'origin', origin, blocks[1])
    target.rpc.call('era_create', name='era', metadata_bdev='meta', origin_bdev='origin', **params)
    return meta, origin


def era_check(metadata: Path) -> None:
    """Both generations accept the metadata."""
    _run(['era_check', str(metadata)])
    _run(strict_tool('era_check') + [str(metadata)])


def era_dump(metadata: Path) -> ElementTree.Element:
    return ElementTree.fromstring(_run(['era_dump', str(metadata)]))


def blocks_of(xml: str) -> Set[int]:
    """The blocks that XML of era_invalidate lists. 0.9 puts spaces around an equals sign."""
    found: Set[int] = set()
    for element in ElementTree.fromstring(xml):
        if element.tag == 'block':
            found.add(int(element.get('block')))
        else:
            found.update(range(int(element.get('begin')), int(element.get('end'))))
    return found


def era_invalidate(metadata: Path, era: int, snapshot: bool = False) -> Set[int]:
    """What the tools list. Of the metadata snapshot only that of 1.x: 0.9 reads elsewhere (era.md 10)."""
    options = ['--written-since', str(era)]
    strict = _run(strict_tool('era_invalidate') + options
                  + (['--metadata-snapshot', 'yes'] if snapshot else []) + [str(metadata)])
    found = blocks_of(strict)
    if not snapshot:
        assert blocks_of(_run(['era_invalidate', *options, str(metadata)])) == found
    return found


def written_since(rpc, era: int, limit: int = 1024, name: str = 'era') -> List[dict]:
    """The ranges of all pages."""
    answer = rpc.call('era_written_since', name=name, era=era, limit=limit)
    ranges = list(answer['ranges'])
    while answer['next_block'] is not None:
        assert len(answer['ranges']) == limit
        answer = rpc.call('era_written_since', name=name, era=era, limit=limit,
                          snapshot=answer['snapshot'], begin_block=answer['next_block'])
        ranges += answer['ranges']
    return ranges


def blocks_in(ranges: Iterable[dict]) -> Set[int]:
    return {block for r in ranges for block in range(r['begin'], r['begin'] + r['length'])}


def snapshot_since(rpc, era: int, name: str = 'era') -> Set[int]:
    """What was written since an era until now; there is no metadata snapshot before and after."""
    rpc.call('era_take_metadata_snap', name=name)
    found = blocks_in(written_since(rpc, era, name=name))
    rpc.call('era_drop_metadata_snap', name=name)
    return found
