# SPDX-License-Identifier: Apache-2.0
"""The kernels under Numba: the reference's statements, compiled."""
