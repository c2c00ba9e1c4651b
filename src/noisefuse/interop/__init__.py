# SPDX-License-Identifier: Apache-2.0
"""Other libraries: each module is loaded when its library's arrays are first seen, and uses public names only."""
