"""``python -m ghn_fast`` is ``ghn-fast``."""

from __future__ import annotations

from ghn_fast.cli import main

if __name__ == "__main__":
    main()
