"""Prints what CHANGELOG.md says of the version of a tag: ``python .ci/release_notes.py v1.2.3``.

Fails where the tag, ``ghn_fast/_version.py`` and the changelog do not agree, or where the changelog
calls the version unreleased.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def notes(tag: str, version_file: str, changelog: str) -> str:
    """The changelog's text for the version.

    Raises:
        ValueError: they do not agree.
    """
    version = re.search(r'__version__ = "(.+)"', version_file)
    if version is None or tag != f"v{version[1]}":
        raise ValueError(f"the tag is {tag}, ghn_fast/_version.py has {version and version[1]}")
    section = re.search(
        rf"^## {re.escape(version[1])} \((\d{{4}}-\d\d-\d\d)\)\n(.*?)(?=^## |\Z)",
        changelog,
        flags=re.MULTILINE | re.DOTALL,
    )
    if section is None:
        raise ValueError(f"CHANGELOG.md has no heading '## {version[1]} (YYYY-MM-DD)'")
    return section[2].strip()


if __name__ == "__main__":
    try:
        version_file = (ROOT / "ghn_fast" / "_version.py").read_text(encoding="utf-8")
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        print(notes(sys.argv[1], version_file, changelog))
    except ValueError as error:
        sys.exit(f"error: {error}")
