"""Makes the README's links to files absolute, for PyPI, which shows it without the files.

python .ci/absolute_links.py https://host/owner/name v1.2.3
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?P<text>(?P<mark>!?)\[[^][]*\])\((?P<path>[^)#\s]+)(?P<rest>[^)]*)\)")


def absolute(text: str, repository: str, ref: str) -> str:
    """The text with links to files of the repository as links to it; pictures are shown from it."""

    def link(found: re.Match[str]) -> str:
        if not (ROOT / found["path"]).exists():
            return found[0]
        view = "raw" if found["mark"] else "blob"
        return f"{found['text']}({repository}/{view}/{ref}/{found['path']}{found['rest']})"

    return LINK.sub(link, text)


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(absolute(readme.read_text(encoding="utf-8"), *sys.argv[1:]), encoding="utf-8")


if __name__ == "__main__":
    main()
