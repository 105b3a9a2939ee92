"""Small real tokenizers, one per family, written as their models' directories have them."""

import io
import json
from importlib.util import find_spec

import pytest
import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SENTENCES = (
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "### Human: how do I cook rice? ### Assistant: rinse it, then boil it for 12 minutes.",
    "Knowledge: the cat sat on the mat in 1999.\n\nI didn't know that!  They'll see it, too.",
)
TEXTS = (
    *("", " ", "  ", "\n", "\n\n a", "hello", " hello", "  hello", "hello ", "hello  there "),
    *(
        "the cat\tsat",
        "12 345",
        " 7",
        "naïve café",
        "e\u0301",
        "日本語",
        "🙂 the 👩‍👩‍👧",
        "\u00a0x",
        "▁a",
    ),
    *("<", "</", "<s", "|>", "<0x0A>", "It's the user's. ### Human: ", "\r\nI'll\r\n"),
)

needs_sentencepiece = pytest.mark.skipif(
    find_spec("sentencepiece") is None, reason="pip install sentencepiece: absent"
)


def write(folder, settings, config=None, **files):
    """A directory with tokenizer_config.json, config.json and ``files`` (dots as __)."""
    folder.mkdir(parents=True)
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": config}))
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def byte_level(size, special, *, split=None):
    """A byte-level BPE trained on the sentences, with ``special`` at the front."""
    backend = tokenizers.Tokenizer(models.BPE())
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    backend.pre_tokenizer = bytewise
    if split is not None:
        pattern = pre_tokenizers.Split(tokenizers.Regex(split), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([pattern, bytewise])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    return backend


def vocabulary_files(backend):
    model = json.loads(backend.to_str())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"])])
    return {"vocab__json": json.dumps(model["vocab"]), "merges__txt": merges + "\n"}


def gpt2_backend():
    return byte_level(400, ["<|endoftext|>"])


def gpt2(folder):
    named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024, **named}
    return write(folder, settings, "gpt2", tokenizer__json=gpt2_backend().to_str())


def dialogpt(folder):
    return write(folder, None, "gpt2", **vocabulary_files(gpt2_backend()))


def roberta_backend():
    backend = byte_level(420, ["<s>", "<pad>", "</s>", "<unk>"])
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return backend


def roberta(folder):
    named = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    named |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    settings = {"tokenizer_class": "RobertaTokenizer", **named}
    return write(folder, settings, "roberta", tokenizer__json=roberta_backend().to_str())


def roberta_parts(folder):
    parts = vocabulary_files(roberta_backend())
    vocabulary = json.loads(parts["vocab__json"])
    parts["vocab__json"] = json.dumps(vocabulary | {"<mask>": len(vocabulary)})
    return write(folder, {"model_max_length": 512}, "roberta", **parts)


def bert(folder):
    """A WordPiece in lower case, with the length of its last training run, as published."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    backend.train_from_iterator(SENTENCES * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    named = {f"{name[1:-1].lower()}_token": name for name in special}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **named}
    return write(folder, settings, "bert", tokenizer__json=backend.to_str())


def neox(folder):
    backend = byte_level(400, ["<|endoftext|>", "<|padding|>"])
    backend.normalizer = normalizers.NFC()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.add_tokens([AddedToken(" " * n, normalized=False) for n in (4, 3, 2)])
    named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": False, **named}
    return write(folder, settings, "gpt_neox", tokenizer__json=backend.to_str())


def llama3(folder):
    pattern = (
        r"(?i:'s|'t|'re|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    backend = byte_level(400, [], split=pattern)
    backend.model.ignore_merges = True
    named = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>"]
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in named])
    begin = (named[0], backend.token_to_id(named[0]))
    template = processors.TemplateProcessing(
        single=[begin[0], "$A"],
        pair=[begin[0], "$A", f"{begin[0]}:1", "$B:1"],
        special_tokens=[begin],
    )
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), template]
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": named[0]}
    settings |= {"eos_token": named[3], "clean_up_tokenization_spaces": True}
    return write(folder, settings, "llama", tokenizer__json=backend.to_str())


def llama_backend():
    """As published for Llama 1 and 2: no pre-tokenizer, the space in front by the normaliser."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    trained.train_from_iterator(SENTENCES * 3, trainer)
    state = json.loads(trained.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    state["model"] |= {"byte_fallback": True, "fuse_unk": True}
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.pre_tokenizer = None
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return backend


def llama(folder):
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", **named}
    return write(folder, settings, "llama", tokenizer__json=llama_backend().to_str())


def llama2(folder):
    """The space only in front of the first stretch, as files with ``"legacy": false`` have it."""
    backend = llama_backend()
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, **named}
    return write(folder, settings, "llama", tokenizer__json=backend.to_str())


def sentencepiece_model(kind="bpe"):
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 9),
        model_writer=written,
        vocab_size=450,
        hard_vocab_limit=False,
        model_type=kind,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    return written.getvalue()


def llama_model(folder):
    settings = {"tokenizer_class": "LlamaTokenizer"}
    return write(folder, settings, "llama", tokenizer__model=sentencepiece_model())


JSON_KINDS = {
    "llama": llama,
    "llama2": llama2,
    "llama3": llama3,
    "neox": neox,
    "gpt2": gpt2,
    "roberta": roberta,
}
KINDS = {
    **JSON_KINDS,
    "dialogpt": dialogpt,
    "roberta parts": roberta_parts,
    "llama model": llama_model,
}
NAMES = [
    pytest.param(name, marks=needs_sentencepiece if name == "llama model" else ()) for name in KINDS
]
