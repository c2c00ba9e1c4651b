# SPDX-License-Identifier: Apache-2.0
"""Tokens: noise, draws from logits, losses, schedules, samplers and their tables."""
