# SPDX-License-Identifier: Apache-2.0
"""Where the C++ sources lie that are installed beside the extension: headers for users, and the CUDA kernels."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def installed() -> Path:
    """Returns the folder of `csrc` and, with -DNOISEFUSE_CUDA=ON, `kernels.fatbin`. ImportError: nothing was built."""
    extension = find_spec("noisefuse._native")
    if extension is None or extension.origin is None:
        raise ImportError(
            "the C++ and CUDA sources come with the C++ extension, which was not built when noisefuse was installed"
        )
    return Path(extension.origin).parent


def get_include() -> str:
    """The folder of the C++ headers for programs of your own: `noisefuse.h`, and a CMake package.

    Returns:
        Its path, for a compiler's `-I` and for CMake's `noisefuse_DIR`.

    Raises:
        ImportError: noisefuse was installed without its C++ extension, and the headers come with it.

    >>> import os
    >>> os.path.exists(os.path.join(nf.get_include(), "noisefuse.h"))
    True
    """
    beside, checkout = installed() / "csrc", Path(__file__).parents[3] / "csrc"
    return str(beside if beside.is_dir() else checkout)
