# SPDX-License-Identifier: Apache-2.0
"""What transforms of other libraries share."""
