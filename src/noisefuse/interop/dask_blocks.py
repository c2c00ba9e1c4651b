# SPDX-License-Identifier: Apache-2.0
"""Tasks that were stored before `dask` was a folder name this module."""

from .dask.blocks import _unpickled as _unpickled
