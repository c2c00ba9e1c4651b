# SPDX-License-Identifier: Apache-2.0
"""The command noisefuse: a file or a folder for each of its subcommands, loaded when it is called."""
