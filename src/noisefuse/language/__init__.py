# SPDX-License-Identifier: Apache-2.0
"""The description of one element's computation: rows of numbers, integer levels, the forward process, noise
increments."""
