# SPDX-License-Identifier: Apache-2.0
"""The parts of a run of a sampler: its state, its rows, what it draws, a known part, the first answer of a model."""
