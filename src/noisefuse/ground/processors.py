# SPDX-License-Identifier: Apache-2.0
"""The processors that this process may run on."""

import os


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
