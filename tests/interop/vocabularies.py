"""Tokenizers of the kinds that are published, learned here from a little text: llama.cpp must make the same tokens of a text as tokenizer.json."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# Of many scripts, so that pieces of them are learned.
FOREIGN = [
    "Le cœur a ses raisons que la raison ne connaît point ; l'été dernier, à Orléans, nous étions vingt-trois.",
    "Übermorgen fahren wir nach Köln, und dort gibt es größere Straßen als hier: 1.234,56 Euro!",
    "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. 1877",
    "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？ 我们在二〇二四年见面。",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。カタカナも。",
    "나는 한국어를 조금 합니다. 오늘은 날씨가 좋습니다.",
    "العلم نور والجهل ظلام، والكتاب خير جليس في الزمان.",
    "सत्य ही ईश्वर है, और ईश्वर ही सत्य है।",
    "Ὁ βίος βραχύς, ἡ δὲ τέχνη μακρή. Ελληνικά 12",
    "def f(x):\n    return [i ** 2 for i in range(10) if i % 2 == 0]  # squares\n\n\tif (a != b) { c += 0x1F; }\r\n",
]
PROBES = [
    "The 12,345 cats' (naïve) plan: don't\n\n  stop — it's 3.14!  tabs\tand   spaces 漢字",
    "DON'T WE'RE I'LL you'Ve", " leading", "trailing  ", "\n", "\n\n\n a", "a\r\nb\r\n\r\nc", "x = 1000000 + 22 - 333", "C'est l'été: œuvre.",
    "Привет мир 2024", "学而时习之，不亦说乎？", "カタカナ と ひらがな", "오늘은 좋습니다.", "العلم نور،", "सत्य ही ईश्वर है", "🙂 emoji 👩‍👩‍👧 done", "a.b,c;d:e!f?g…h",
    "def f(x):\n    return x ** 2  # ok\n\n\tif (a != b) { c += 0x1F; }", "...!!! ??? -- == =>", "http://example.org/a/b?c=d&e=f#g", "½ ² ³ ¾ x²", "Ὁ βίος 12",
    "_under_score_ CamelCase HTTPServer iOS", "   ", "a" * 40, "1 22 333 4444 55555 666666", "é́ combining", "\u00a0nbsp\u2003em",
]  # fmt: skip

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + END
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN_35 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + END
TIKTOKEN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
FIRST = r"[^\r\n\p{L}\p{N}]?"
GPT_4O = f"{FIRST}{UPPER}*{LOWER}+{CONTRACTIONS}?|{FIRST}{UPPER}+{LOWER}*{CONTRACTIONS}?" + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + END
TEKKEN = f"{FIRST}{UPPER}*{LOWER}+|{FIRST}{UPPER}+{LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + END
DEEPSEEK_3 = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def split(expression: str, behavior: str = "isolated", invert: bool = False):
    return pre_tokenizers.Split(Regex(expression), behavior, invert)


def bytes_of(regex: bool):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)


# Name: llama.cpp's way to split, the steps, whether whole tokens are not merged, the normalizer.
BYTE_LEVEL = {
    "gpt2": ("gpt-2", [bytes_of(True)], False, None),
    "pythia": ("gpt-2", [bytes_of(True)], False, normalizers.NFC()),
    "starcoder": ("smollm", [pre_tokenizers.Digits(True), bytes_of(True)], False, None),
    "command-r": ("smollm", [pre_tokenizers.Digits(True), bytes_of(True)], False, normalizers.NFC()),
    "falcon": ("falcon", [pre_tokenizers.Punctuation("contiguous"), bytes_of(True), pre_tokenizers.Digits(False), split("[0-9][0-9][0-9]")], False, None),
    "llama3": ("llama-bpe", [split(LLAMA_3), bytes_of(False)], True, None),
    "phi4": ("smaug-bpe", [split(LLAMA_3, "removed", True), bytes_of(False)], False, None),
    "tiktoken": ("smaug-bpe", [split(TIKTOKEN, "removed", True), bytes_of(False)], False, None),
    "qwen2": ("qwen2", [split(QWEN_2), bytes_of(False)], False, normalizers.NFC()),
    "qwen35": ("qwen35", [split(QWEN_35), bytes_of(False)], False, normalizers.NFC()),
    "gpt-oss": ("gpt-4o", [split(GPT_4O), bytes_of(False)], False, None),
    "nemo": ("tekken", [split(TEKKEN), bytes_of(False)], True, None),
    "deepseek3": ("deepseek-v3", [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK_3), bytes_of(False)], False, None),
    "deepseek-coder": ("deepseek-coder", [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"),
                                          pre_tokenizers.Digits(True), bytes_of(False)], False, None),
    "bloom": ("bloom", [split(BLOOM), bytes_of(False)], False, None),
}  # fmt: skip
# What llama.cpp is known to do otherwise: it has no classes of marks in these two ways to split, and puts a space before every text.
MARKS = {"सत्य ही ईश्वर है", "é́ combining"}
OTHERWISE = {"gpt-oss": MARKS, "nemo": MARKS, "mistral3": {" leading", "   ", "some<unk>text", "some<s>text", "some</s>text"}}


def byte_level(kind: str, corpus: list[str]) -> tuple[Tokenizer, dict]:
    """A tokenizer of bytes, with a begin and an end, and a token that a user defined."""
    _, steps, ignores, normalizer = BYTE_LEVEL[kind]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignores))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<begin>", "<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    if kind == "llama3":
        tokenizer.post_processor = processors.TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", 0)])
    return tokenizer, {"bos_token": "<begin>", "eos_token": "<end>"}


def sentencepiece(kind: str, corpus: list[str], work: Path) -> tuple[Tokenizer, dict]:
    """SentencePiece's pieces, as transformers writes them: every pair of pieces whose union is one is a merge, in the order of the unions' scores."""
    import sentencepiece

    text = work / f"{kind}.txt"
    text.write_text("\n".join(line.replace("\n", " ") for line in corpus))
    defined = ["\n\n", "▁▁", "▁▁▁▁"] if kind == "gemma" else []
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(work / kind), vocab_size=1500, model_type="bpe", byte_fallback=True, character_coverage=0.999,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, user_defined_symbols=defined, minloglevel=2,
        add_dummy_prefix=kind != "gemma", max_sentence_length=100000,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=str(work / f"{kind}.model"))
    vocabulary = {model.id_to_piece(id): id for id in range(model.vocab_size())}
    merges = []
    for piece, id in vocabulary.items():
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs = sorted((pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary), key=lambda pair: [vocabulary[part] for part in pair])
        merges += [(model.get_score(id), pair) for pair in pairs]
    merges.sort(key=lambda merge: merge[0], reverse=True)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[pair for _, pair in merges], byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", "▁")
    if kind == "llama2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif kind == "mistral3":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in defined])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


PIECES = ["llama2", "mistral3", "gemma"]


def corpus_of(demo: Path) -> list[str]:
    return (demo / "calibration.txt").read_text()[:200_000].split("\n\n") + FOREIGN * 40


def write(tokenizer: Tokenizer, settings: dict, directory: Path) -> None:
    """A model of one small layer, with rows to spare, and this tokenizer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + 3, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def differences(source: Path, file: Path, leave: set[str] = frozenset()) -> list[str]:
    """Texts of which llama.cpp makes other tokens, special ones at the ends and in the text included."""
    import llama_cpp

    there = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    here = Tokenizer.from_file(str(source / "tokenizer.json"))
    special = [token.content for token in here.get_added_tokens_decoder().values() if token.content.startswith("<")]
    found = []
    for probe in [*PROBES, *(f"some{token}text" for token in special)]:
        expected = here.encode(probe, add_special_tokens=True).ids
        ids = there.tokenize(probe.encode(), add_bos=True, special=True)
        if ids != expected and probe not in leave:
            at = next((at for at, pair in enumerate(zip(ids, expected)) if pair[0] != pair[1]), min(len(ids), len(expected)))
            found.append(f"{probe[:30]!r}: {ids[at : at + 4]} for {expected[at : at + 4]}")
    there.close()
    return found


def pre(file: Path) -> str:
    """The way to split that a file names."""
    import gguf

    return gguf.GGUFReader(file).get_field("tokenizer.ggml.pre").contents()
