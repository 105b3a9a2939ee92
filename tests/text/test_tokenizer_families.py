"""Tokenizers of the four families against `transformers` and SentencePiece, from the same files."""

import itertools

import pytest
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers

from alol_jax.text.tokenizer import Tokenizer
from alol_jax.text.tokenizer_files import from_directory
from tests.text.tokenizer_kinds import JSON_KINDS, KINDS, NAMES, TEXTS, needs_sentencepiece

CLASSES = {
    "gpt2": transformers.GPT2Tokenizer,
    "dialogpt": transformers.GPT2Tokenizer,
    "neox": transformers.GPTNeoXTokenizer,
    "roberta": transformers.RobertaTokenizer,
    "roberta parts": transformers.RobertaTokenizer,
    "llama2": transformers.LlamaTokenizer,
}
ENDS = {"llama3": "<|eot_id|>", "neox": "<|endoftext|>", "gpt2": "<|endoftext|>"}
ENDS["dialogpt"] = "<|endoftext|>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> (our tokenizer, the directory), made when first asked for."""
    root, known = tmp_path_factory.mktemp("tokenizers"), {}

    def make(name):
        if name not in known:
            folder = KINDS[name](root / name)
            known[name] = from_directory(folder), folder
        return known[name]

    return make


def theirs(name, folder):
    """`transformers` on the same files: as they are written, or by the family's class."""
    written = name in JSON_KINDS or name == "llama model"
    loader = transformers.PreTrainedTokenizerFast if written else CLASSES[name]
    return loader.from_pretrained(str(folder))


def end_of(name):
    return ENDS.get(name, "</s>")


def stretches():
    return (*TEXTS, *map("".join, itertools.product(TEXTS, ("7 x", " the"))))


@pytest.mark.parametrize("name", NAMES)
def test_texts_have_the_ids_that_transformers_gives_them(name, made):
    ours, folder = made(name)
    other = theirs(name, folder)
    for text in stretches():
        expected = other.encode(text, add_special_tokens=False)
        assert ours.encode(text) == expected, repr(text)
        assert list(ours.encode_response(text, limit=999)[0]) == [*expected, other.eos_token_id]
        assert ours.decode(expected) == other.decode(expected, skip_special_tokens=True)
        if text:
            begin = [other.bos_token_id] if name.startswith(("llama", "roberta")) else []
            assert list(ours.encode_prompt("{prompt}", text, limit=999)) == begin + expected, repr(
                text
            )


@pytest.mark.parametrize("name", CLASSES)
def test_the_class_of_the_family_agrees_with_the_files(name, made):
    ours, folder = made(name)
    other = CLASSES[name].from_pretrained(str(folder))
    for text in TEXTS:
        assert ours.encode(text) == other.encode(text, add_special_tokens=False), repr(text)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "template", ["{prompt}E", "E{prompt}", "a E {prompt} E\nb", "E E{prompt}:"]
)
def test_a_filled_template_has_the_ids_of_the_whole_string(name, template, made):
    ours, folder = made(name)
    other, template = theirs(name, folder), template.replace("E", end_of(name))
    for text in TEXTS:
        whole = other.encode(template.replace("{prompt}", text), add_special_tokens=False)
        ids = list(ours.encode_prompt(template, text, limit=999))
        assert ids in (whole, [other.bos_token_id, *whole]), repr(text)


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_in_a_text_are_spelled_out(name, made):
    ours, folder = made(name)
    other, end = theirs(name, folder), end_of(name)
    for text in (end, f"a{end}", f" {end} b", f"{end}{end}", f"7{end}\n\nx"):
        spelled = other.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert not set(spelled) & set(other.all_special_ids)
        assert list(ours.encode_response(text, limit=999)[0]) == [*spelled, ours.eos_id]
        assert ours.decode(spelled) == other.decode(spelled)
        ids = list(ours.encode_prompt(f"{end}{{prompt}}{end}", text, limit=999))
        assert ids.count(ours.eos_id) == 2 and ids[-1] == ours.eos_id


@needs_sentencepiece
def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(made):
    import sentencepiece

    ours, folder = made("llama model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert (ours.eos_id, ours.pad_id, ours.vocab_size) == (2, 2, model.get_piece_size())
    for text in (*stretches(), "</s>", " </s>", "a<s> b", "<unk>", "<0x41>"):
        ids, complete = ours.encode_response(text, limit=999)
        assert complete and list(ids) == [*model.encode(text), 2], repr(text)
        assert ours.decode(ids) == model.decode(model.encode(text))
        if text:
            assert list(ours.encode_prompt("{prompt}", text, limit=999)) == [1, *model.encode(text)]


@pytest.mark.parametrize("name", ["llama", pytest.param("llama model", marks=needs_sentencepiece)])
def test_after_a_special_token_llamas_space_is_put_in_front_of_the_texts_own(name, made):
    ours, _ = made(name)
    for text in ("hello", " hello", "  hello", "hello</s>", " </s>"):
        alone = ours.encode_response(text, limit=99)[0][:-1]
        assert ours.decode(alone) == text
        assert ours.encode_prompt("</s>{prompt}</s>", text, limit=99) == (1, 2, *alone, 2)


def test_a_space_that_only_the_first_stretch_has_in_front_is_not_invented(made):
    ours, _ = made("llama2")
    prefixed, bare = ours.encode("hello"), ours.encode("</s>hello")[1:]
    assert prefixed != bare
    assert ours.encode_prompt("{prompt}</s>", "hello", limit=99) == (1, *prefixed, 2)
    assert ours.encode_prompt("</s>{prompt}", "hello", limit=99) == (1, 2, *bare)
    spelled = ours.encode_prompt("</s>{prompt}", "hello</s>", limit=99)
    assert spelled[: 2 + len(bare)] == (1, 2, *bare) and 2 not in spelled[2:]


# cuts


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_prompt_keeps_the_template_and_an_end_of_the_text(name, made):
    ours, _ = made(name)
    end = end_of(name)
    template = f"{end}Human: {{prompt}}{end}"
    for text in ("the cat sat  on 日本語 🙂 mats", f"a {end} b {end}", "  hello there\n\n"):
        ends = [ours.encode_prompt(template, text[i:], limit=999) for i in range(len(text) + 1)]
        cuts = []
        for limit in range(len(ends[-1]), len(ends[0]) + 1):
            ids = ours.encode_prompt(template, text, limit=limit)
            assert ids in ends and len(ids) <= limit
            cuts.append(ends.index(ids))
        assert cuts == sorted(cuts, reverse=True) and cuts[-1] == 0


# merges


@pytest.mark.parametrize("whole_words", [False, True])
def test_merges_that_spell_a_special_token_do_not_make_it(whole_words):
    pieces = ["</", "s>", "</s>", "!"]
    vocabulary = {piece: i for i, piece in enumerate([*"</s>ab", *pieces])}
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole_words)
    )
    backend.pre_tokenizer = pre_tokenizers.Split("|", behavior="removed")
    backend.add_special_tokens(["</s>", "!"])
    eos = vocabulary["</s>"]
    ours = Tokenizer(backend, eos_id=eos, pad_id=None, bos_id=None, adds_bos=False)
    backend.encode_special_tokens = True
    assert eos in backend.encode("</s>").ids  # what the library's own switch would give
    assert ours.encode_response("a</s>", limit=9)[0] == (4, vocabulary["</"], vocabulary["s>"], eos)
    assert ours.encode_response("|</s>|", limit=9)[0] == (vocabulary["</"], vocabulary["s>"], eos)
    assert ours.encode_prompt("a</s>{prompt}", "</s>", limit=9).count(eos) == 1
    assert ours.encode_response("!", limit=9)[0] == (
        vocabulary["!"],
        eos,
    )  # it has no other spelling


def test_added_tokens_keep_their_ids_whatever_is_special_and_in_whatever_order():
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 4, "</s>": 2}, merges=[]))
    for name, special in (("<1>", False), ("<2>", True), ("<3>", False), ("</s>", True)):
        backend.add_tokens([tokenizers.AddedToken(name, special=special, normalized=False)])
    ids = tuple(map(backend.token_to_id, ("a", "<1>", "<2>", "<3>", "</s>")))
    ours = Tokenizer(backend, eos_id=2, pad_id=None, bos_id=None, adds_bos=False)
    assert ours.encode_prompt("{prompt}<1><2><3></s>", "a", limit=9) == ids
    assert ours.encode_response("a<1>", limit=9)[0] == (*ids[:2], 2)
