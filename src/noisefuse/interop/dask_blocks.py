# SPDX-License-Identifier: Apache-2.0
"""Tasks that were stored before `dask` was a folder name this module."""

from .dask.blocks import Call as Call
from .dask.blocks import _Task as _Task
from .dask.blocks import _unpickled as _unpickled
from .dask.blocks import longer as longer
from .dask.blocks import same as same
