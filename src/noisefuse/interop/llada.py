# SPDX-License-Identifier: Apache-2.0
"""LLaDA's ``generate`` with keys: its arguments and its tokens, and a seed for each request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import noisefuse as nf

from ..ground.libraries import library_for
from ..language.noise import Noise

__all__ = ["generate"]


def generate(
    model: Callable[..., Any], prompt: Any, noise: Noise | Sequence[Noise] | None = None, *, steps: int = 128,
    gen_length: int = 128, block_length: int = 128, temperature: float = 0.0, cfg_scale: float = 0.0,
    remasking: str = "low_confidence", mask_id: int = 126336, attention_mask: Any = None, logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False, threshold: float | None = None, factor: float | None = None,
    eos_id: int = 126081, eot_id: int = 126348, state: Any = None, progress: bool = False,
) -> Any:  # fmt: skip
    """Writes `gen_length` tokens after a prompt, as ``generate`` of LLaDA's repository does (Nie et al. 2025, "Large
    language diffusion models", section 2.4 and algorithm 5).

    At temperature 0 the tokens are LLaDA's, wherever no two confidences lie within some 1e-6: it computes them in
    float64 from all logits at once, and of equal ones takes any. At other temperatures the distribution is LLaDA's and
    the draws are the noise's. As in its code, a network that draws the mask leaves it; and masks in the prompt may be
    revealed in place of the block's, so that as many masks are left at the end as the prompt had.

    Args:
        model: ids (B, L) -> logits (B, L, V), or an object with such `logits`; it takes ``attention_mask=`` if that is
            given.
        prompt: ids (B, L), of NumPy or torch on the CPU.
        noise: a Noise, or a list of one for each request. None: enough for temperature 0 with "low_confidence".
        steps, gen_length, block_length, temperature, cfg_scale, remasking, mask_id: as LLaDA has them. The prompt is
            masked for the model's second call where cfg_scale is not 0.
        attention_mask: (B, L) of the prompt, 0 where it is padded; the model gets it with ones for the new tokens.
        logits_eos_inf: the token eos_id is never drawn.
        confidence_eos_eot_inf: eos_id and eot_id are revealed last, as their confidence is 0 (LLaDA, appendix B.4); at
            temperatures above 0 eot_id alone, as in its code.
        threshold, factor: Fast-dLLM's parallel decoding, see `samplers.llada`.
        state: ``sampler.state()`` of any sampler of tokens, which counts the model's calls: `state.calls`.
        progress: show a bar (needs tqdm).

    Returns:
        ids (B, L + gen_length), of the prompt's kind.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected.

    >>> def model(ids):
    ...     return np.eye(10, dtype=np.float32)[(3 * np.arange(ids.shape[1])) % 10][None].repeat(len(ids), 0)
    >>> prompt = np.array([[1, 2]])
    >>> nf.interop.llada.generate(model, prompt, steps=4, gen_length=4, block_length=2, mask_id=10).tolist()
    [[1, 2, 6, 9, 2, 5]]
    """
    sampler = nf.samplers.llada(
        steps, mask_id=mask_id, length=gen_length, block_length=block_length, remask=remasking,  # type: ignore[arg-type]
        cfg_scale=cfg_scale, temperature=temperature, mask_logit="keep", threshold=threshold, factor=factor,
    )  # fmt: skip
    unsure = (eos_id, eot_id) if temperature == 0 else (eot_id,)
    if logits_eos_inf or confidence_eos_eot_inf:
        changes: dict[str, Any] = {"left_out": (eos_id,) * logits_eos_inf, "unsure": unsure * confidence_eos_eot_inf}
        sampler = nf.DiscreteSampler(replace(sampler.table, **changes))
    if noise is None:
        if temperature or remasking == "random":
            raise TypeError(f"noise: expected a Noise for temperature {temperature} and {remasking!r}, got None")
        noise = Noise(0)  # nothing is drawn
    if not callable(model):
        raise TypeError(f"model: expected a function, or a network, of ids, got {type(model).__name__}")
    library = library_for(prompt)
    ids = np.asarray(library.to_numpy(prompt))
    if ids.ndim != 2:
        raise ValueError(f"prompt: expected ids (B, L), got shape {ids.shape}")
    if threshold is None and factor is None and (ids == mask_id).any():
        sampler = nf.DiscreteSampler(replace(sampler.table, rows=_counted(sampler.table.rows, block_length)))
    masks = sampler.start((len(ids), gen_length), dtype=ids.dtype.name)
    x = np.concatenate([ids, masks], axis=1)
    given = ids.shape[1]

    options: dict[str, Any] = {}
    if attention_mask is not None:
        seen = np.asarray(library.to_numpy(attention_mask))
        if seen.shape != ids.shape:
            raise ValueError(f"attention_mask: expected the prompt's shape {ids.shape}, got {seen.shape}")
        seen = np.concatenate([seen, np.ones((len(ids), gen_length), seen.dtype)], axis=1)
        options["attention_mask"] = library.moved(seen, prompt)

    def logits(x: Any) -> Any:
        answer = model(x, **options)
        return getattr(answer, "logits", answer)

    def guided(x: Any, t: Any) -> Any:
        if not cfg_scale:
            return logits(x)
        hidden = library.to_numpy(x).copy()
        hidden[:, :given][ids != mask_id] = mask_id  # a mask of the prompt may have been revealed
        return logits(library.moved(hidden, prompt)), logits(x)

    return sampler.sample(guided, library.moved(x, prompt), noise, state=state, progress=progress)


def _counted(rows: Sequence[nf.TokenRow], block_length: int) -> tuple[nf.TokenRow, ...]:
    """Returns the rows with the numbers of masks that they reveal of blocks alone, whose masks all are new."""
    made: list[nf.TokenRow] = []
    for row in rows:
        assert row.left is not None
        left = block_length - sum(one.count or 0 for one in made if one.end == row.end)
        made.append(replace(row, left=None, count=-(-left // row.left)))
    return tuple(made)
