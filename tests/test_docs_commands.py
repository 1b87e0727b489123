# SPDX-License-Identifier: BSD-3-Clause
"""Every command in the README and the documentation is executed, but for those of consoles, which test_docs.py has, and
those of NOT_HERE. Commands within a line, which have placeholders, are ones that the programs know."""

import argparse
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest

from harness import DmTarget
from harness.pages import PAGES, PRELUDE, ROOT, blocks, rows, spans, without_own_test
from harness.ploop import qemu
from harness.pool import aio, wait_for
from harness.process import SpdkProcess, end_all, program

MIB = 1 << 20
README = ROOT / 'README.md'
# Longer than anything here takes on a busy machine: a hang guard.
HANG_SECONDS = 120
# Lines that are not executed, and why.
NOT_HERE = {
    'host ──NVMe-oF──► spdk_tgt ─ libspdk_dm.so ─ thin bdev ─ pool ─┬─ data bdev      (NVMe, AIO, malloc …)': 'a drawing',
    '└─ metadata bdev': 'a drawing',
    'make demo': 'by test_demos.py',
    'make test': 'this is part of it',
    'SPDK_DIR=/path/to/spdk make build': 'builds everything anew; test_setup.py has an SPDK in SPDK_DIR found',
    'vgchange -an vg': 'logical volumes of the machine itself',
    'vgcfgbackup -f vg.txt vg': 'logical volumes of the machine itself',
    'spdk_dm_tgt -c vg.json': 'disks of LVM; test_import_lvm.py serves those that a kernel has made',
}
# Code within a line that only looks like a command.
NO_COMMANDS = {'spdk-dm backup 1'}
# What the targets of the Makefile are executed by, where that is not `make test` itself; `make -n` is tried here.
MAKE = {
    'demo': 'test_demos.py', 'demo-backup': 'test_demos.py', 'demo-migrate': 'test_demos.py', 'demo-merge': 'test_demos.py',
    'demo-replicate': 'test_demos.py', 'demo-era': 'test_era.py', 'demo-snapshot': 'test_snapshot.py',
    'run': 'a person has to end it; as demo until then', 'help': 'test_setup.py', 'docs': 'test_docs.py', 'bench': 'test_bench.py',
    'bench-pools': 'test_bench.py', 'bench-stalls': 'test_bench.py', 'bench-many': 'test_bench.py',
    'bench-foreground': 'test_bench.py', 'bench-charts': 'draws; takes a set-up of its own', 'build': 'integration',
    'test': 'this is part of it', 'check': 'test', 'unit': 'test', 'integration': 'test', 'sim': 'unit', 'mutations': 'takes hours; check',
    'fuzz': 'takes minutes; unit replays', 'soak': 'test_soak.py', 'interop': 'test_kernel_thin.py',
}


class Scene:
    """A target, a folder, and bdevs with the names that a page has."""

    def __init__(self, folder):
        self.folder = folder
        self.target = DmTarget(folder, memory_mb=512)
        self.rpc = self.target.rpc
        self._bdevs = []
        # As seen from the project's folder.
        (folder / 'rpc').symlink_to(ROOT / 'rpc')
        (folder / 'target').symlink_to(program('spdk-dm').rpartition('/release/')[0])
        python_path = os.pathsep.join(filter(None, [str(ROOT / 'rpc' / 'python'), os.environ.get('PYTHONPATH')]))
        self.env = dict(os.environ, SPDK_DM=program('spdk-dm'), SOCKET=self.target.process.socket, PYTHON=sys.executable,
                        PYTHONPATH=python_path)

    def bdevs(self, **megabytes):
        for name, size in megabytes.items():
            self.zeroes(name, size)
            aio(self.target, name, self.folder / name)
            self._bdevs.append(name)

    def zeroes(self, name, megabytes):
        path = self.folder / name
        path.unlink(missing_ok=True)
        with open(path, 'wb') as file:
            file.truncate(megabytes * MIB)
        return path

    def shell(self, command):
        """Output and errors in one, as on a terminal."""
        return subprocess.run(['bash', '-c', PRELUDE + command], env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HANG_SECONDS, check=False)

    def clear(self):
        """Nothing is left for the next block, whose bdevs have the same names."""
        for export in self.rpc.call('nbd_export_list'):
            self.rpc.call('nbd_export_delete', path=export['path'])

        def removed():
            names = [line.split('\t')[0] for line in self.shell('spdk-dm ls').stdout.splitlines() if '\t' in line]
            return not names or not [self.shell(f'spdk-dm remove --force {name}') for name in names]
        wait_for(removed)
        for name in self._bdevs:
            self.rpc.call('bdev_aio_delete', name=name)
        self._bdevs = []


@pytest.fixture(scope='module', name='scene')
def one_scene(tmp_path_factory):
    scene = Scene(tmp_path_factory.mktemp('docs'))
    try:
        yield scene
        scene.target.stop()
    finally:
        end_all()


def pool(scene, **bdevs):
    """'pool0' with thin device 1, of which something is written, as bdev 'thin1'."""
    scene.bdevs(meta0=16, data0=64, **bdevs)
    scene.rpc.call('thin_pool_create', name='pool0', metadata_bdev='meta0', data_bdev='data0')
    scene.rpc.call('thin_create', pool='pool0', id=1, bdev_name='thin1', size_mib=16)
    path = str(scene.folder / 'write.nbd')
    uri = scene.rpc.call('nbd_export_create', bdev_name='thin1', path=path, writable=True)
    qemu('qemu-io', '-f', 'raw', '-c', 'write -P 1 0 1M', uri)
    scene.rpc.call('nbd_export_delete', path=path)


def thin_metadata(scene):
    """META is that of a pool with devices 1 and 2 and a metadata snapshot."""
    pool(scene)
    scene.rpc.call('thin_snapshot', pool='pool0', id=2, origin_id=1)
    scene.rpc.call('thin_reserve_metadata_snap', pool='pool0')
    scene.rpc.call('thin_deactivate', bdev_name='thin1')
    scene.rpc.call('thin_pool_delete', name='pool0')
    shutil.copy(scene.folder / 'meta0', scene.folder / 'META')


def era_metadata(scene):
    scene.bdevs(META=4, origin=16)
    scene.rpc.call('era_create', name='era0', metadata_bdev='META', origin_bdev='origin')
    scene.rpc.call('era_take_metadata_snap', name='era0')
    scene.rpc.call('era_delete', name='era0')


def ploop_images(scene):
    for name in ('IMAGE', 'A'):
        scene.shell(f'rm -f {name}; spdk-dm ploop create --size-mib 16 {name}')


def backups(scene):
    pool(scene, Nvme2n1=16)
    for name in ('monday.backup', 'tuesday.backup', 'disk.raw'):
        (scene.folder / name).unlink(missing_ok=True)
    (scene.folder / 'backups').mkdir(exist_ok=True)


def nbd(scene):
    pool(scene)
    qemu('qemu-img', 'create', '-f', 'qcow2', scene.folder / 'disk.qcow2', '16M')


# What must be there: page, beginning of the block.
PREPARED = {
    ('README.md', 'export PYTHONPATH'): lambda scene: scene.bdevs(Nvme0n1=16, Nvme1n1=64),
    ('README.md', 'rpc.py --plugin spdk_dm_rpc era_create'): lambda scene: scene.bdevs(Nvme0n1=64, Nvme1n1=4),
    ('README.md', 'rpc.py --plugin spdk_dm_rpc snapshot_origin'): lambda scene: scene.bdevs(Nvme0n1=64, Nvme1n1=16),
    ('README.md', 'rpc.py --plugin spdk_dm_rpc ploop_create'): lambda scene: scene.bdevs(Nvme0n1=64, Nvme1n1=64),
    ('README.md', 'spdk-dm thin check'): thin_metadata,
    ('README.md', 'spdk-dm era check'): era_metadata,
    ('README.md', 'spdk-dm ploop create'): ploop_images,
    ('README.md', 'spdk-dm create pool'): lambda scene: scene.bdevs(META=16, DATA=1024),
    ('README.md', 'spdk-dm backup'): backups,
    ('README.md', 'rpc.py --plugin spdk_dm_rpc nbd_export'): nbd,
    ('backup.md', 'spdk-dm backup'): backups,
    ('operations.md', 'vgchange'): lambda scene: shutil.copy(ROOT / 'cli/tests/lvm/vg.txt', scene.folder),
}


def merged(scene):
    wait_for(lambda: scene.rpc.call('snapshot_status', name='base0')['merge']['merge'] == 'finished')


# What a person does before a command: what stands beside it.
BEFORE = [
    (r'^spdk-dm (thin|era) .* NEW\b', lambda scene: scene.zeroes('NEW', 4)),
    (r'^spdk-dm ploop create .* NEW\b', lambda scene: (scene.folder / 'NEW').unlink(missing_ok=True)),
    (r'^spdk-dm backup restore', lambda scene: scene.shell('cp *.backup backups')),
    (r'snapshot_delete', merged),
]


def commands_of(page):
    """(the block's beginning, its commands) of blocks that are executed here."""
    for block in blocks(page):
        assert block.language in ('console', 'indented', 'text', 'json', 'sh'), (page.name, block.language)
        if block.language in ('indented', 'text'):
            yield block.text, [line for line in block.text.splitlines() if not why_not(line)]
        elif block.language == 'sh':
            assert not without_own_test(page, 'sh', ROOT / 'tests'), page.name


def why_not(line):
    return NOT_HERE.get(line.split('  #')[0].strip())


def program_starts(scene, line):
    """An SPDK program with the plugin, by a line with LD_PRELOAD; it has our methods."""
    words = line.replace('…', '').split()
    preload, command = words[0].partition('=')[2], [os.environ['SPDK_DM_TGT'] if word.endswith('spdk_tgt') else word
                                                    for word in words[1:] if not word.startswith(('-r', '/var/tmp'))]
    assert (scene.folder / preload).samefile(program('libspdk_dm.so'))
    process = SpdkProcess(command, scene.folder, 'by-hand', plugin=True, memory_mb=256)
    process.wait_ready()
    assert process.rpc.call('thin_pool_status') == []
    assert process.stop() == 0


def shown_live(scene, line):
    """What `spdk-dm top` shows on a terminal, until it is ended."""
    ours, its = pty.openpty()
    process = subprocess.Popen([program('spdk-dm'), 'top', '--socket', scene.target.process.socket], stdin=its, stdout=its,
                               stderr=its)
    try:
        shown = b''
        while b'pool' not in shown:
            assert process.poll() is None, (line, shown)
            shown += os.read(ours, 4096)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(its)


@pytest.mark.parametrize('page', [page for page in [README, *PAGES] if any(lines for _, lines in commands_of(page))],
                         ids=lambda page: page.name)
def test_commands(scene, page):
    """Each succeeds, in the order in which they stand."""
    for text, lines in commands_of(page):
        for (name, beginning), prepare in PREPARED.items():
            if name == page.name and text.startswith(beginning):
                prepare(scene)
        exported = ''
        for line in lines:
            for pattern, prepare in BEFORE:
                if re.search(pattern, line):
                    prepare(scene)
            if line.startswith('LD_PRELOAD='):
                program_starts(scene, line)
            elif line.startswith('spdk-dm top'):
                shown_live(scene, line)
            else:
                line = re.sub(r'(?<=[ =])/(?:var/tmp|backups)\b', lambda found: str(scene.folder) + (
                    '/backups' if found[0] == '/backups' else ''), line)
                done = scene.shell(f'{exported}\n{line}')
                assert done.returncode == 0, (page.name, line, done.stdout)
                exported += f'{line}\n' if line.startswith('export ') else ''
        scene.clear()


def test_the_lists_here_are_needed():
    """Nothing stands in them that no page has any more."""
    texts = {page.name: [block.text for block in blocks(page)] for page in [README, *PAGES]}
    lines = {line.split('  #')[0].strip() for found in texts.values() for text in found for line in text.splitlines()}
    assert set(NOT_HERE) <= lines, set(NOT_HERE) - lines
    for name, beginning in PREPARED:
        assert any(text.startswith(beginning) for text in texts[name]), (name, beginning)
    assert NO_COMMANDS <= {span for page in PAGES for span in spans(page)}


def test_make():
    """Targets that pages name are there, with the variables they are given, and something executes them."""
    found = {}
    for page in [README, *PAGES, ROOT / 'bench/README.md', ROOT / 'spdk-config/README.md']:
        lines = [line.split('  #')[0].strip() for block in blocks(page) for line in block.text.splitlines()]
        for text in [*lines, *spans(page)]:
            match = re.match(r'(?:\$ )?(?:\w+=\S+ )?make (.+)', text)
            if match:
                found[match[1]] = page.name
    makefile = (ROOT / 'Makefile').read_text()
    for command, page in found.items():
        words = re.findall(r"(?:'[^']*'|\S)+", command)
        targets, variables = ([word for word in words if ('=' in word) == with_value] for with_value in (False, True))
        assert all(variable.partition('=')[0] in makefile for variable in variables), (page, command)
        assert targets and all(target in MAKE for target in targets), (page, command, 'what executes it?')
        subprocess.run(['bash', '-c', f'make -n -C {ROOT} {command}'], check=True, stdout=subprocess.DEVNULL,
                       timeout=HANG_SECONDS)
    for where in MAKE.values():
        if where.endswith('.py'):
            assert (ROOT / 'tests' / where).exists(), where


def helps(*verbs):
    return subprocess.run([program('spdk-dm'), *verbs, '--help'], capture_output=True, text=True, check=True).stdout


def test_commands_within_lines():
    """`spdk-dm` knows the verbs and the options of each."""
    groups = ('thin', 'era', 'ploop')
    seen = {(): helps()}
    for page in [README, *PAGES]:
        found = {span for span in spans(page) if span.startswith('spdk-dm ')} - NO_COMMANDS
        found |= {f'spdk-dm {span}' for span in spans(page) if re.match(rf'(?:{"|".join(groups)}) \w+', span)}
        found |= {f'spdk-dm {cell[0].strip("`")}' for cell in rows(page, 'command') if page.name == 'commands.md'}
        for span in found:
            verbs = ()
            for word in span.split('#')[0].split()[1:]:
                option = re.match(r'\[?(--?[a-z][a-z-]*)', word)
                if option:
                    assert re.search(rf'(?<![\w-]){option[1]}(?![\w-])', seen[verbs]), (page.name, span, word)
                elif re.search(rf'^  {re.escape(word)}  ', seen[verbs], re.M):
                    verbs += (word,)
                    if verbs not in seen:
                        seen[verbs] = helps(*verbs)
                elif not verbs or verbs in [(group,) for group in (*groups, 'backup', 'replicate', 'import')]:
                    # A placeholder, or what is of no meaning here.
                    assert verbs and not word.islower(), (page.name, span, word)


def test_methods():
    """Those in tables of methods are there, and have the arguments and options that stand there."""
    sys.path.insert(0, str(ROOT / 'rpc' / 'python'))
    try:
        import spdk_dm_rpc  # pylint: disable=import-error,import-outside-toplevel
    finally:
        sys.path.pop(0)
    parser = argparse.ArgumentParser(exit_on_error=False)
    methods = parser.add_subparsers()
    spdk_dm_rpc.spdk_rpc_plugin_initialize(methods)
    checked = 0
    for page in PAGES:
        for cells in rows(page, 'method'):
            calls = re.findall(r'`([a-z_.]+(?: [^`]*)?)`', cells[0])
            names = []
            for call in calls:
                words = call.split()
                if words[0].startswith('...'):
                    # The rest of a name that begins as the one before.
                    words[0] = next(name for name in methods.choices if name.endswith(words[0].strip('.')) and
                                    name.startswith('_'.join(names[0].split('_')[:2])))
                names.append(words[0])
                assert words[0] in methods.choices, (page.name, call)
                known = methods.choices[words[0]]
                arguments = [word for word in words[1:] if not word.startswith('[')]
                needed = [action.dest for action in known._actions if action.required]  # pylint: disable=protected-access
                assert len(arguments) == len(needed), (page.name, call, needed)
                checked += 1
            for option in re.findall(r'`(--[a-z-]+)', cells[1]):
                assert any(option in methods.choices[name].format_help() for name in names), (page.name, names, option)
    assert checked > 30
