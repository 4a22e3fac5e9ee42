"""The examples of the pages: what stands in ``pycon`` blocks.

``pytest docs`` runs them; ``python docs/examples.py`` writes what they print anew, after a change.
A page's blocks follow each other in one session.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"(?<=```pycon\n)(.*?)(?=```)", flags=re.DOTALL)
OPTIONS = doctest.ELLIPSIS


def as_doctest(page: Path) -> doctest.DocTest | None:
    """A page's blocks as one test, with the page's line numbers; None if there are none."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in BLOCK.finditer(text):
        line = text[: block.start()].count("\n")
        for example in doctest.DocTestParser().get_examples(block[0]):
            example.lineno += line
            found.append(example)
    return doctest.DocTest(found, {}, page.name, str(page), 0, text) if found else None


def rewritten(text: str) -> str:
    """A page with what its examples print now."""
    names: dict[str, Any] = {"__name__": "__main__"}
    return BLOCK.sub(lambda block: _run(block[0], names), text)


def _run(block: str, names: dict[str, Any]) -> str:
    lines = []
    for example in doctest.DocTestParser().get_examples(block):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example.source, "<page>", "single"), names)
        first, *rest = example.source.splitlines()
        lines += [f">>> {first}", *(f"... {line}".rstrip() for line in rest)]
        kept = "..." in example.want
        lines.append((example.want if kept else printed.getvalue()).rstrip("\n"))
    return "\n".join(line for line in lines if line) + "\n"


def main() -> None:
    for page in sorted(Path(__file__).parent.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        new = rewritten(text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
