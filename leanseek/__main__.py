"""The command line, as python -m leanseek."""

from __future__ import annotations

import sys

from leanseek.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
