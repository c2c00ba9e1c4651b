# SPDX-License-Identifier: Apache-2.0
"""The error of an `interop` module whose library is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(module: str, *libraries: str) -> Iterator[None]:
    """Wraps the imports of `libraries`. Its error names the extra that installs them, which is called like the first.

    Any other missing module, such as a library's own dependency, is raised unchanged.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in libraries:
            raise
        message = f"{module} needs {error.name}: pip install 'noisefuse[{libraries[0]}]'"
        raise ModuleNotFoundError(message, name=error.name) from error
