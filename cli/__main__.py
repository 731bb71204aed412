"""``python -m wattline.cli``: the same program as ``wattline``."""

from __future__ import annotations

import sys

from wattline.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
