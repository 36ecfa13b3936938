"""XNLG (Chi et al., 2020): XLM's encoder-decoder, pre-trained to write in one language what was
read in another.

    m      = Xlm(source)                               10 blocks
    states = decoder(target; causal; m)                6 blocks, the words of a language by its id
    L      = -log P(x | noise(x)) - log P(y | x)       the decoder alone is trained, after the encoder was (MLM, TLM)

Differs from XLM's translator: the sides may differ in depth, and both are pre-trained. Stage 1 trains
the encoder by masked words, in single texts and in translations side by side, as `zoo.models.xlm`
does. Stage 2 holds the encoder and trains the decoder to restore texts whose words were shuffled,
dropped and blanked (`zoo.data.masking.add_noise`), and to translate. Fine-tuning on one language
trains the encoder's blocks alone, so that the decoder does not forget the others.

Traps: the language table has the 15 languages of XNLI in alphabetical order, of which two or three are
trained: en is 4, fr 6, zh 14. Zero-shot writing lets the search write words of the target's language
alone (``vocabulary=``). In the authors' configs ``n_layers`` is the decoder's depth.
"""

from __future__ import annotations

from dataclasses import dataclass

from zoo.models.base.config import check_positive
from zoo.models.xlm_translation import XlmTranslation, XlmTranslationConfig
from zoo.registry.terms import LANGUAGE_MODEL


@dataclass(frozen=True, kw_only=True)
class XnlgConfig(XlmTranslationConfig):
    vocab_size: int = 95_000
    num_layers: int = 10  # of the encoder  # eq: depths
    decoder_num_layers: int = 6  # depth of the decoder  # eq: depths
    num_languages: int = 15  # rows of the language table

    def check(self) -> None:
        super().check()
        check_positive(self, "decoder_num_layers")


class Xnlg(XlmTranslation):
    Config = XnlgConfig
    pretraining = (LANGUAGE_MODEL,)  # of the decoder; the encoder's are XLM's  # eq: objective
