# SPDX-License-Identifier: Apache-2.0
"""What users call: each checks its arguments and runs one call."""
