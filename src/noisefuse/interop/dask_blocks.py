# SPDX-License-Identifier: Apache-2.0
"""The module's former name, for tasks that were stored before `dask` was a folder."""

from .dask.blocks import Call as Call
from .dask.blocks import _Task as _Task
from .dask.blocks import _unpickled as _unpickled
from .dask.blocks import longer as longer
from .dask.blocks import same as same
