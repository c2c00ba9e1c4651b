# SPDX-License-Identifier: Apache-2.0
"""What a module of `interop` says where the library that it stands on is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(module: str, *libraries: str) -> Iterator[None]:
    """Around the imports of `libraries`: names the extra that installs them, which has the name of the first.

    What else is missing, of a library's own needs, say, is raised as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in libraries:
            raise
        message = f"{module} needs {error.name}: pip install 'noisefuse[{libraries[0]}]'"
        raise ModuleNotFoundError(message, name=error.name) from error
