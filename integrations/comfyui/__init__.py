# SPDX-License-Identifier: Apache-2.0
"""Nodes of ComfyUI with noisefuse's noise, samplers and levels: see README.md."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
