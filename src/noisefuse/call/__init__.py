# SPDX-License-Identifier: Apache-2.0
"""What a kernel is asked: described, and packed as bytes. Arguments are checked before."""
