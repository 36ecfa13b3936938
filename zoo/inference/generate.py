"""Writing with an encoder-decoder, word by word."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError, TaskError


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_length: int | None = None,
    start_ids: Tensor | None = None,
    **named: Any,
) -> Tensor:
    """Write greedily: at each step the likeliest next word, until each text has ended.

    model: a model with the task conditional-generation, in eval mode. input_ids, attention_mask
    (batch, length): the source. max_length: of what is written, first and last token included; the
    last place is always the end's (None: as many as the model has positions). start_ids (batch, n):
    a beginning to go on from, in place of the config's ``start_token_id``.

    Other inputs go to the encoder, or to the decoder where their names begin with ``decoder_``:
    ``decoder_language_ids="fr"``. Returns ids (batch, written length), filled with the padding id
    after each end.
    """
    if not hasattr(model, "predict") or not hasattr(getattr(model, "model", None), "decode"):
        raise TaskError(
            f"{type(model).__name__} does not write; create an encoder-decoder with task='conditional-generation'"
        )
    if model.training:
        raise InputError("the model is in training mode, so dropout would choose the words; call model.eval() first")
    body, config = model.model, model.config
    limit = config.max_positions if max_length is None else max_length
    for_decoder = {name: value for name, value in named.items() if name.startswith("decoder_")}
    for_encoder = {name: value for name, value in named.items() if name not in for_decoder}
    memory = body.encode(input_ids, attention_mask, **for_encoder).last_hidden_state
    if start_ids is None:
        if config.start_token_id is None:
            raise InputError(
                "this model begins a text with its language's token: pass start_ids (batch, 1), or say "
                "config.start_token_id"
            )
        start_ids = input_ids.new_full((input_ids.shape[0], 1), config.start_token_id)
    written = start_ids
    if not written.shape[1] < limit <= config.max_positions:
        raise InputError(
            f"max_length must lie between {written.shape[1] + 1}, one more than the beginning has, and "
            f"{config.max_positions}, got {limit}"
        )
    going = torch.ones(len(written), dtype=torch.bool, device=written.device)
    padding, end = config.pad_token_id or 0, config.end_token_id
    while written.shape[1] < limit and bool(going.any()):
        last = body.decode(written, memory, attention_mask, **for_decoder).last_hidden_state[
            :, -1:
        ]  # (batch, 1, hidden)
        following = model.predict(last)[:, 0].argmax(1)  # (batch,)
        if written.shape[1] == limit - 1:
            following = torch.full_like(following, end)
        following = torch.where(going, following, padding)
        written = torch.cat([written, following[:, None]], 1)
        going = going & (following != end)
    return written
