# SPDX-License-Identifier: Apache-2.0
"""The path from a caller's arguments to a checked call."""
