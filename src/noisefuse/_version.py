# SPDX-License-Identifier: Apache-2.0
"""The version, where all that tells it can import it."""

__version__ = "0.1.0.dev0"
