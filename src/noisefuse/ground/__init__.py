# SPDX-License-Identifier: Apache-2.0
"""What everything stands on. Its modules import nothing of noisefuse."""
