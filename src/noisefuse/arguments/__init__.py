# SPDX-License-Identifier: Apache-2.0
"""From a caller's arguments to a checked call."""
