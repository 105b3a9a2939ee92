"""Small tokenizers of the kinds that llama.cpp has, as their models' directories have them."""

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from tests.text import tokenizer_kinds


def gpt2(folder):
    return bpe(folder, bytewise(True))


def smollm(folder):
    digits = pre_tokenizers.Digits(individual_digits=True)
    return bpe(folder, pre_tokenizers.Sequence([digits, bytewise(True)]))


def llama3(folder, whole=True):
    """Llama 3's, with a begin token."""
    return bpe(folder, _words(r"\p{N}{1,3}"), begin="<|begin|>", whole=whole)


def qwen2(folder):
    return bpe(folder, _words(r"\p{N}"), normalizer=normalizers.NFC())


def _words(digits):
    pattern = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, bytewise(False)])


def bytewise(regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)


def bpe(
    folder,
    pre_tokenizer,
    begin="",
    behind="",
    chat_template="{{ messages }}",
    normalizer=None,
    whole=False,
):
    """A byte-level BPE with this pre-tokenizer, and a token before or behind every text; if
    ``whole``, a word that is a token is not split, whatever the merges say."""
    named = ["<|end|>", *filter(None, [begin])]
    trained = tokenizer_kinds.byte_level(400, named)
    trained.pre_tokenizer = pre_tokenizer
    trained.model.ignore_merges = whole
    if normalizer is not None:
        trained.normalizer = normalizer
    trained.decoder = decoders.ByteLevel()
    settings = {"eos_token": "<|end|>", "chat_template": chat_template}
    if begin or behind:
        trained.post_processor = processors.TemplateProcessing(
            single=[*filter(None, (begin, "$A", behind))],
            special_tokens=[
                (token, trained.token_to_id(token)) for token in (begin, behind) if token
            ],
        )
    if begin:
        settings["bos_token"] = begin
    return tokenizer_kinds.write(folder, settings, tokenizer__json=trained.to_str())


def gemma(folder):
    """Spaces become marks, none is put in front; a line break is a token that users may write."""
    backend = tokenizer_kinds.llama_backend()
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.add_tokens([tokenizers.AddedToken("\n\n", normalized=False)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return tokenizer_kinds.write(folder, named, "gemma2", tokenizer__json=backend.to_str())
