"""What mkdocs does to the pages: docstrings name things as Sphinx does, which is not Markdown."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:func|class|meth|data|mod|attr|exc):<code>~?")


def on_page_content(html: str, **_: Any) -> str:
    return ROLE.sub("<code>", html)
