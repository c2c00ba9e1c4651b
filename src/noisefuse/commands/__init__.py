# SPDX-License-Identifier: Apache-2.0
"""The command noisefuse: each subcommand has a file or a folder, which is loaded when it is called."""
