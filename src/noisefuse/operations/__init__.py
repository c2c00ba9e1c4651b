# SPDX-License-Identifier: Apache-2.0
"""The functions that users call. Each checks its arguments and runs one call."""
