# SPDX-License-Identifier: Apache-2.0
"""The parts that transforms of other libraries share."""
