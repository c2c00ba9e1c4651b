# SPDX-License-Identifier: Apache-2.0
"""The noise contract in Triton."""
