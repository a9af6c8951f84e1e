"""Words of the tokenizers' vocabularies, and other embeddings for some of them.

Neither tokenizer nor text encoder is changed: prompts contain words that nothing else uses, and a hook on the
embedding layer returns other vectors for them. So prompts with learnt embeddings go through the pipeline's
own code, whatever its class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from pipelines.backbone import Backbone

WORD_END = "</w>"
"""How CLIP's vocabulary marks a token that ends a word."""


def whole_words(backbone: Backbone, without: Sequence[str] = ()) -> list[str]:
    """Words that every tokenizer reads as one token, so that a prompt can be typed and reads the same.

    Args:
        without: texts whose tokens are excluded.

    Raises:
        ValueError: there are none.
    """
    first, *others = backbone.tokenizers
    found = [token.removesuffix(WORD_END) for token in first.get_vocab() if token.endswith(WORD_END)]
    found = sorted(word for word in found if word.isascii() and word.isalnum())
    for tokenizer in (first, *others):
        taken = {i for ids in _ids(tokenizer, list(without)) for i in ids} if without else set()
        found = [
            word
            for word, ids in zip(found, _ids(tokenizer, found), strict=True)
            if len(ids) == 1 and ids[0] not in taken
        ]
    if not found:
        raise ValueError("The tokenizer has no whole words, as CLIP's has.")
    return found


def token_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> torch.Tensor:
    """(K,) the token of each of K whole words."""
    return torch.tensor([ids[0] for ids in _ids(tokenizer, list(words))])


def vocabularies(backbone: Backbone) -> list[torch.Tensor]:
    """The embeddings (V, E) of each text encoder."""
    return [encoder.get_input_embeddings().weight.detach() for encoder in backbone.text_encoders]


@contextmanager
def standing_in(backbone: Backbone, words: Sequence[str], vectors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within: the words have other embeddings.

    Args:
        words: K whole words.
        vectors: (K, E) for each text encoder; gradients reach them if they are enabled.
    """
    handles = []
    for encoder, tokenizer, given in zip(backbone.text_encoders, backbone.tokenizers, vectors, strict=True):
        layer = encoder.get_input_embeddings()
        handles.append(
            layer.register_forward_hook(_hook(token_ids(tokenizer, words).to(layer.weight.device), given))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(ids: torch.Tensor, vectors: torch.Tensor) -> Any:
    def replace(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        for i, vector in zip(ids, vectors, strict=True):
            output = torch.where((args[0] == i)[..., None], vector.to(output.dtype), output)
        return output

    return replace


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False).input_ids if texts else []
