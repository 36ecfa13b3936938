"""Self-critical training (Rennie et al., 2017, arXiv:1612.00563): a model that writes learns from a score of its
texts.

    w ~ p(w | source),   b = reward(the likeliest text, word by word)
    loss = - mean over texts of (reward(w) - b) sum_t log p(w_t | w_<t, source)

No gradient goes through rewards. What is better than the model's own plain text becomes likelier, what is worse less
likely. Dropout is off, so that the words are drawn from the distribution whose gradient is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ConfigError, InputError
from zoo.inference.generate import generate, log_probs_of
from zoo.inference.search.settings import FIELDS, Search
from zoo.layers.outputs import Output
from zoo.models.base.model import unwrapped
from zoo.tasks.metrics.writing import Reward

PLAIN = (str, int, float, bool)
BASELINES = ("greedy", "samples")


@dataclass(frozen=True)
class Criticized(Output):
    """What was drawn and how good it was: ``texts``, their ``rewards`` (batch, samples), the ``baseline`` that each is
    compared with, and their ``log_probs`` (batch, samples), summed over words.
    """

    texts: tuple[str, ...]
    rewards: Tensor
    baseline: Tensor
    log_probs: Tensor


@dataclass(frozen=True, kw_only=True)
class SelfCritical:
    """How texts are drawn and judged.

    ``reward(text, references)``: a number, the higher the better, such as `zoo.tasks.metrics.writing.chrf` or a
    `Cider`. A batch holds what `zoo.generate` takes, and ``references``: a list of right texts for each source.
    """

    reward: Reward
    samples: int = 1  # texts that are drawn for each source
    baseline: str = "greedy"  # the likeliest text, word by word; "samples": the mean of a source's other samples
    search: Search = field(default_factory=lambda: Search(do_sample=True))  # how they are drawn

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise ConfigError(f"reward must be a function of a text and its references, got {self.reward!r}")
        if not isinstance(self.samples, int) or isinstance(self.samples, bool) or self.samples < 1:
            raise ConfigError(f"samples={self.samples!r} must be a whole number of at least 1")
        if self.baseline not in BASELINES:
            raise ConfigError(f"baseline must be one of {', '.join(BASELINES)}, got {self.baseline!r}")
        if self.baseline == "samples" and self.samples < 2:
            raise ConfigError(
                'baseline="samples" compares a text with the others of its source; draw 2 samples at least'
            )
        if not self.search.do_sample or self.search.num_beams > 1 or self.search.num_return_sequences > 1:
            raise ConfigError(
                "texts are drawn: the search needs do_sample=True and one beam; samples= says how many texts"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the reward and functions of the search by their names."""
        changed = {name: value for name in FIELDS if (value := getattr(self.search, name)) != getattr(Search(), name)}
        search = {name: value if isinstance(value, PLAIN) else repr(value) for name, value in sorted(changed.items())}
        reward = getattr(self.reward, "__qualname__", type(self.reward).__qualname__)
        return {"reward": reward, "samples": self.samples, "baseline": self.baseline, "search": search}

    def run(
        self, model: Any, batch: Mapping[str, Any], *, tokenizer: Any, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Criticized]:
        """The loss of a batch, and what was drawn. generator: of the draws; torch's own by default."""
        inner: Any = unwrapped(model)
        inputs, references = dict(batch), batch.get("references")
        inputs.pop("references", None)
        rows = len(next((x for x in inputs.values() if isinstance(x, Tensor)), ()))
        if not isinstance(references, Sequence) or isinstance(references, str) or len(references) != rows:
            count = len(references) if isinstance(references, Sequence) else None
            raise InputError(f"references must be a list of right texts for each of {rows} sources, got {count} lists")
        was = inner.training
        inner.eval()
        try:
            search = self.search.replace(num_return_sequences=self.samples)
            drawn = generate(inner, inputs, search=search, generator=generator)
            texts = [text.strip() for text in drawn.texts(tokenizer)]
            rewards = self._rewards(texts, references, drawn.log_probs).view(rows, self.samples)
            if self.baseline == "samples":
                baseline = (rewards.sum(1, keepdim=True) - rewards) / (self.samples - 1)
            else:
                plain = generate(inner, inputs, search=search.replace(do_sample=False, num_return_sequences=1))
                said = [text.strip() for text in plain.texts(tokenizer)]
                baseline = self._rewards(said, references, drawn.log_probs)[:, None].expand_as(rewards)
            log_probs = self._log_probs(inner, inputs, drawn).view(rows, self.samples)
        finally:
            inner.train(was)
        loss = -((rewards - baseline) * log_probs).mean()  # eq: self-critical
        return loss, Criticized(tuple(texts), rewards, baseline, log_probs.detach())

    def _rewards(self, texts: Sequence[str], references: Sequence[Sequence[str]], like: Tensor) -> Tensor:
        times, values = len(texts) // len(references), []
        for number, text in enumerate(texts):
            value = self.reward(text, references[number // times])
            if not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
                raise InputError(f"a reward must be a finite number, got {value!r} for {text!r:.60}")
            values.append(float(value))
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    def _log_probs(self, model: Any, inputs: Mapping[str, Any], drawn: Any) -> Tensor:
        """(texts,): the summed log-probabilities of what was drawn, with gradients."""
        sequences, new = drawn.sequences, drawn.log_probs.shape[1]
        longest = torch.tensor(drawn.lengths, device=sequences.device)
        real = torch.arange(sequences.shape[1], device=sequences.device) < longest[:, None]
        if sequences.shape[1] == new:  # a text begins behind what is read last, as `score` has it
            sequences = torch.nn.functional.pad(sequences, (1, 0))
            real = torch.nn.functional.pad(real, (1, 0), value=True)
        given = {name: self._repeated(value) for name, value in inputs.items()}
        if type(model.model).writes == "causal":  # the beginning stands in the texts
            given = {name: value for name, value in given.items() if name not in ("input_ids", "attention_mask")}
        source = given.pop("input_ids", None)
        found = log_probs_of(model, source, sequences, given.pop("attention_mask", None), target_mask=real, **given)
        return found[:, -new:].sum(1)

    def _repeated(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.repeat_interleave(self.samples, 0)
        return [each for each in value for _ in range(self.samples)] if isinstance(value, list | tuple) else value
