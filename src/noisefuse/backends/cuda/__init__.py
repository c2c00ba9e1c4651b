# SPDX-License-Identifier: Apache-2.0
"""Launches of the CUDA kernels, and their machine code."""
