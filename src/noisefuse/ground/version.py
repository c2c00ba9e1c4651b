# SPDX-License-Identifier: Apache-2.0
"""This is the version, where everything that tells it can import it."""

__version__ = "0.1.0.dev0"
