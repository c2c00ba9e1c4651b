# SPDX-License-Identifier: Apache-2.0
"""The parts of a sampler's run: its state, its rows, its draws, a known part of x, the first answer of a model."""
