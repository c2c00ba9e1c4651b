# SPDX-License-Identifier: Apache-2.0
"""The description of a kernel's work, and its packing into bytes. Arguments are checked before."""
