# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' launches, and their machine code."""
