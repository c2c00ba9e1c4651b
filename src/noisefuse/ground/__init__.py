# SPDX-License-Identifier: Apache-2.0
"""The ground floor, on which everything stands. Its modules import nothing of noisefuse."""
