"""`export --what=gguf`: read back by our reader and by gguf's, with the logits of the policy."""

import dataclasses

import gguf
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file
from tokenizers import normalizers, pre_tokenizers

from alol_jax.errors import UserError
from alol_jax.export import export, parse
from alol_jax.models.files.gguf_file import described
from alol_jax.models.language_model import open_language_model
from alol_jax.models.presets import PRESETS
from alol_jax.models.rotary import LinearScaling, Llama3Scaling, Rotary
from alol_jax.text.gguf_tokenizer import GGUFVocabulary, from_gguf
from alol_jax.text.gguf_vocabulary import read_vocabulary, special_fields
from alol_jax.text.tokenizer_files import from_directory, save
from tests.finished_run import config_of, finished_run, policy_logits, random_policy
from tests.text import gguf_kinds, tokenizer_kinds
from tests.text.gguf_kinds import bpe, bytewise
from tests.tiny_run import mesh_of

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 9))
WHOLE = {"rank": 0, "alpha": 1.0, "dropout": 0.0, "modules": ("all-linear",)}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A finished run of the tiny Llama with adapters: its workdir and its model."""
    workdir = tmp_path_factory.mktemp("llama")
    return workdir, finished_run(workdir, config_of("random:llama-tiny"))


def exported(workdir, out, *flags):
    export(parse([f"--workdir={workdir}", "--what=gguf", f"--out={out}", *flags]))
    return out / "model.gguf"


def value_of(file, key):
    field = gguf.GGUFReader(file).fields.get(key)
    return None if field is None else field.contents()


def test_our_reader_finds_the_policys_logits_and_the_same_tokens(llama, tmp_path):
    workdir, lm = llama
    file = exported(workdir, tmp_path / "out")
    again = open_language_model(config_of(str(file), lora=WHOLE).model, mesh_of(1))
    found, wanted = again.transformer.config, lm.transformer.config
    assert found.norm_epsilon == np.float32(wanted.norm_epsilon)  # the file has float32
    assert dataclasses.replace(found, norm_epsilon=wanted.norm_epsilon) == wanted
    ours = policy_logits(lm, random_policy(lm, 2).trained, TOKENS)
    theirs = policy_logits(again, again.trainable(None), TOKENS)
    np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)
    text = "<|im_start|>naïve 123\n<|im_end|>"
    assert again.tokenizer.encode(text) == lm.tokenizer.encode(text)
    assert again.tokenizer.eos_id == lm.tokenizer.eos_id


def test_ggufs_reader_finds_the_merged_weights_and_what_llama_cpp_asks_for(llama, tmp_path):
    workdir, lm = llama
    file = exported(workdir, tmp_path / "out", "--dtype=bfloat16")
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {"BF16"}
    merged = tmp_path / "merged"
    export(parse([f"--workdir={workdir}", "--what=merged", f"--out={merged}"]))
    stored = load_file(merged / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    found = gguf.quants.dequantize(
        tensors["blk.1.ffn_up.weight"].data, tensors["blk.1.ffn_up.weight"].tensor_type
    )
    np.testing.assert_array_equal(found, stored.astype(ml_dtypes.bfloat16).astype(np.float32))
    config = lm.transformer.config
    for key, value in {
        "general.architecture": "llama",
        "general.file_type": 32,
        "llama.block_count": config.layers,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.rope.dimension_count": config.head_width,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": lm.tokenizer.eos_id,
        "tokenizer.ggml.add_bos_token": False,
    }.items():
        assert value_of(file, key) == value, key
    tokens, types = (value_of(file, f"tokenizer.ggml.{x}") for x in ("tokens", "token_type"))
    assert len(tokens) == len(types) == config.vocab_size
    assert tokens[257:260] == ["<|im_start|>", "<|im_end|>", "[PAD259]"]
    assert types[255:260] == [1, 3, 3, 3, 5]


def test_beside_it_are_a_card_and_a_file_for_ollama(llama, tmp_path):
    folder = exported(llama[0], tmp_path / "out").parent
    assert {path.name for path in folder.iterdir()} == {"model.gguf", "README.md", "Modelfile"}
    assert (folder / "Modelfile").read_text().splitlines() == [
        "FROM ./model.gguf",
        'TEMPLATE """<|im_start|>{{ .Prompt }}<|im_end|>"""',
        'PARAMETER stop "\\n"',
    ]
    card = (folder / "README.md").read_text()
    assert "library_name: gguf" in card and "ollama create" in card


# rotary scaling


def test_llama_3s_scaling_is_a_tensor_that_divides_the_plain_frequencies():
    scaling = Llama3Scaling(factor=8.0, low=1.0, high=4.0, original=8192)
    config = dataclasses.replace(PRESETS["llama-tiny"], rotary=Rotary(5e5, 16, scaling))
    (factors,) = described(config).vectors.values()
    plain = Rotary(5e5, 16).frequencies()
    np.testing.assert_allclose(plain / factors, config.rotary.frequencies(), rtol=1e-6)
    assert factors.min() == 1.0 and factors.max() == pytest.approx(8.0, rel=1e-6)
    assert described(PRESETS["llama-tiny"]).vectors == {}


def test_linear_scaling_is_two_keys():
    config = dataclasses.replace(PRESETS["llama-tiny"], rotary=Rotary(1e4, 16, LinearScaling(4.0)))
    fields = described(config).keys
    assert fields["llama.rope.scaling.type"] == "linear"
    assert fields["llama.rope.scaling.factor"] == 4.0
    assert "llama.rope.scaling.type" not in described(PRESETS["llama-tiny"]).keys


# tokenizers


@pytest.mark.parametrize("kind", [gguf_kinds.smollm, gguf_kinds.llama3, gguf_kinds.qwen2])
def test_a_byte_level_tokenizer_reads_texts_as_before(kind, tmp_path):
    ours = from_directory(kind(tmp_path / "its"))
    save(ours, tmp_path / "saved")
    found = read_vocabulary(tmp_path / "saved", ours.vocab_size + 3)
    named = special_fields(ours)
    again = from_gguf(
        GGUFVocabulary(
            model=found.model,
            pre=found.pre,
            tokens=found.tokens,
            token_types=found.types,
            merges=found.merges,
            bos_id=named.get("tokenizer.ggml.bos_token_id"),
            eos_id=named["tokenizer.ggml.eos_token_id"],
            pad_id=named["tokenizer.ggml.padding_token_id"],
            add_bos=named["tokenizer.ggml.add_bos_token"],
        )
    )
    assert found.pre == {"llama3": "llama-bpe"}.get(kind.__name__, kind.__name__)
    assert named["tokenizer.chat_template"] == "{{ messages }}"
    for text in tokenizer_kinds.TEXTS:
        assert again.encode(text) == ours.encode(text), text
    one, other = (t.encode_prompt("a {prompt}", "b", limit=9) for t in (again, ours))
    assert one == other


def merged_by_score(text, vocabulary):
    """SentencePiece's BPE as llama.cpp has it: the neighbours whose union scores highest join."""
    score = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    pieces = list(("▁" if vocabulary.space_first else "") + text.replace(" ", "▁"))
    while True:
        unions = enumerate(map("".join, zip(pieces, pieces[1:], strict=False)))
        pairs = [(score[union], -n) for n, union in unions if union in score]
        if not pairs:
            return pieces
        place = -max(pairs)[1]
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


@pytest.mark.parametrize(
    ("kind", "space_first"),
    [(tokenizer_kinds.llama, True), (tokenizer_kinds.llama2, True), (gguf_kinds.gemma, False)],
)
def test_scores_join_a_sentencepiece_bpe_as_its_merges_do(kind, space_first, tmp_path):
    ours = from_directory(kind(tmp_path / "its"))
    save(ours, tmp_path / "saved")
    found = read_vocabulary(tmp_path / "saved", ours.vocab_size)
    assert (found.model, found.pre, found.merges) == ("llama", "default", ())
    assert found.fields()["tokenizer.ggml.add_space_prefix"] is space_first
    assert found.types[found.tokens.index("<0x0A>")] == 6
    for text in ("the cat sat on the mat", "hello there", "polite answers"):
        named = [found.tokens[i] for i in ours.encode(text)]
        assert merged_by_score(text, found) == named
    if kind is gguf_kinds.gemma:
        assert found.types[found.tokens.index("\n\n")] == 4


# refusals


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("gpt-neox-tiny", r"activation = 'gelu' of this gpt_neox has no .*: use --what=merged"),
        ("mistral-tiny", r"attention.local = Local.window=24.* of this mistral has no form in"),
    ],
)
def test_a_model_that_is_not_written_is_named(preset, said, tmp_path):
    finished_run(tmp_path / "run", config_of(f"random:{preset}"))
    with pytest.raises(UserError, match=said):
        exported(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pre_tokenizer_that_llama_cpp_has_no_known_name_for_is_one_line(tmp_path):
    split = pre_tokenizers.Split(tokenizers.Regex(r"\d"), behavior="isolated")
    folder = bpe(tmp_path / "its", pre_tokenizers.Sequence([split, bytewise(True)]))
    with pytest.raises(UserError, match="name of this tokenizer's pre-tokenizer is not known"):
        read_vocabulary(folder, 400)


def test_a_tokenizer_that_treats_a_word_that_is_a_token_otherwise_is_one_line(tmp_path):
    merges = gguf_kinds.llama3(tmp_path / "a", whole=False)
    with pytest.raises(UserError) as error:
        read_vocabulary(merges, 400)
    assert str(error.value) == (
        "--what=gguf: tokenizer.json has ignore_merges False, but llama.cpp's llama-bpe has True "
        "and would give words that are tokens other ids: use --what=merged"
    )
    whole = bpe(tmp_path / "b", bytewise(True), whole=True)
    with pytest.raises(UserError, match="ignore_merges True, but llama.cpp's gpt-2 has False"):
        read_vocabulary(whole, 400)


def test_a_sentencepiece_tokenizer_that_changes_texts_otherwise_is_one_line(tmp_path):
    backend = tokenizer_kinds.llama_backend()
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), backend.normalizer])
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    with pytest.raises(UserError, match="no form of this SentencePiece tokenizer's normaliser"):
        read_vocabulary(tmp_path, 500)


def test_a_word_piece_tokenizer_is_one_line(tmp_path):
    folder = tokenizer_kinds.bert(tmp_path / "its")
    with pytest.raises(UserError, match="a WordPiece tokenizer has no form in GGUF"):
        read_vocabulary(folder, 400)


def test_of_several_chat_templates_the_default_is_written(tmp_path):
    """The files that `save` writes have all of them."""
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ mine }}"}]
    folder = bpe(tmp_path / "its", bytewise(True), chat_template=named)
    found = special_fields(from_directory(folder))
    assert found["tokenizer.chat_template"] == "{{ mine }}"


def test_an_end_token_behind_every_text_is_no_begin_token(tmp_path):
    folder = bpe(tmp_path / "its", bytewise(True), behind="<|end|>")
    found = special_fields(from_directory(folder))
    assert not found["tokenizer.ggml.add_bos_token"]
    assert "tokenizer.ggml.bos_token_id" not in found
