# SPDX-License-Identifier: Apache-2.0
"""``python -m noisefuse`` is the command ``noisefuse``."""

from __future__ import annotations

from .commands.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
