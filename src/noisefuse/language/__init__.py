# SPDX-License-Identifier: Apache-2.0
"""What can be said of an element: rows of numbers, levels, the forward process, increments of noise."""
