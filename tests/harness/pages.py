# SPDX-License-Identifier: BSD-3-Clause
"""What stands in the pages of the documentation as code."""

import re
from pathlib import Path
from typing import Iterator, List, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / 'docs').glob('*.md'))
FENCED = re.compile(r'^```(\w*)\n(.*?)^```', re.S | re.M)
# The documentation names no socket; the functions are where it does not matter.
PRELUDE = '''
    spdk-dm() {
        local verb=$1
        shift
        case $verb${1:+-$1} in
            completions-* | man-* | thin-* | era-* | ploop-* | import-* | backup-verify | backup-list) "$SPDK_DM" "$verb" "$@" ;;
            *) "$SPDK_DM" "$verb" "$@" --socket "$SOCKET" ;;
        esac
    }
    rpc.py() { "$PYTHON" "$SPDK_DM_RPC_PY" -s "$SOCKET" "$@"; }
'''


class Block(NamedTuple):
    """A fenced block with its language, or a run of lines that are indented by four."""
    language: str
    text: str


def blocks(page: Path) -> List[Block]:
    text = page.read_text(encoding='utf-8')
    found = [Block(language, content) for language, content in FENCED.findall(text)]
    for run in re.findall(r'(?:^    .*\n)+', FENCED.sub('', text), re.M):
        found.append(Block('indented', ''.join(line[4:] + '\n' for line in run.splitlines())))
    return found


def spans(page: Path) -> Iterator[str]:
    """Code within a line."""
    return (span.replace('\\|', '|') for span in
            re.findall(r'`([^`\n]+)`', FENCED.sub('', page.read_text(encoding='utf-8'))))


def rows(page: Path, heading: str) -> Iterator[List[str]]:
    """The cells of the rows of tables whose first column is called so."""
    within = False
    for line in page.read_text(encoding='utf-8').splitlines():
        cells = [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
        if not cells:
            within = False
        elif cells[0] == heading:
            within = True
        elif within and not set(cells[0]) <= set('- '):
            yield cells


def without_own_test(page: Path, language: str, tests: Path) -> bool:
    """Whether no other test takes the blocks of this language, because their commands need more than is elsewhere."""
    others = (path.read_text(encoding='utf-8') for path in tests.glob('test_*.py') if not path.name.startswith('test_docs'))
    return not any(page.name in text and '```' + language in text for text in others)
