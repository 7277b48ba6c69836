from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wkv.errors import TokenizerError
from wkv.tokenizer import (
    BpeTokenizer,
    ByteTokenizer,
    StreamDecoder,
    Tokenizer,
    WorldTokenizer,
    find_tokenizer,
    load_tokenizer,
)

TEXTS = ["", "Hello world", "a\n\nb", "é你🙂\t  x", "<|endoftext|>", "\x00\x7f", "e\u0301"]
quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


# --- every tokenizer ------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_encoding_and_decoding(tokenizer, text):
    assert isinstance(tokenizer, Tokenizer)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@quick
@given(text=st.text(max_size=60))
def test_any_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@quick
@given(data=st.binary(max_size=40))
def test_any_bytes_survive_encoding_and_decoding(tokenizer, data):
    ids = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode("utf-8", errors="replace")


def test_special_tokens_in_text_are_text_unless_asked(tokenizer):
    text = "a<|endoftext|>b"
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special_tokens.values())
    if tokenizer.special_tokens:
        asked = tokenizer.encode(text, allow_special=True)
        assert asked == [*tokenizer.encode("a"), 0, *tokenizer.encode("b")]
        assert tokenizer.decode(asked) == "ab"
        assert tokenizer.decode(asked, keep_special=True) == text
        assert tokenizer.end_of_text == 0
    else:
        assert tokenizer.end_of_text is None


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(TokenizerError, match="position 1"):
        tokenizer.encode("a\ud83d")


def test_padding_rows_of_the_vocabulary_decode_to_nothing(tokenizer):
    assert tokenizer.decode([tokenizer.vocab_size + 3]) == ""
    with pytest.raises(TokenizerError, match="negative"):
        tokenizer.decode([-1])


def test_prompts_are_encoded_to_the_same_text(tokenizer):
    for text in ("", "\n", "\n\n", "x\n\n\n", "Q: a\n\n"):
        assert tokenizer.decode(tokenizer.encode_prompt(text)) == text


# --- streaming ------------------------------------------------------------------------------


@quick
@given(text=st.text(max_size=30), data=st.data())
def test_streamed_pieces_never_hold_a_broken_character(tokenizer, text, data):
    whole = "" if "\ufffd" in text else text
    ids = tokenizer.encode_bytes(whole.encode())
    if data.draw(st.booleans()):  # a tokenisation that splits every character
        ids = [tokenizer._byte(b) for b in whole.encode()]
    stream = StreamDecoder(tokenizer)
    pieces = [stream.feed([i]) for i in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == whole


@quick
@given(data=st.binary(max_size=24))
def test_streamed_pieces_join_to_the_whole_for_any_bytes(tokenizer, data):
    ids = [tokenizer._byte(b) for b in data]
    stream = StreamDecoder(tokenizer)
    assert "".join(stream.feed([i]) for i in ids) + stream.flush() == tokenizer.decode(ids)


def test_an_invalid_byte_shows_as_soon_as_it_is_certain():
    tokenizer = ByteTokenizer(end_of_text=False)
    stream = StreamDecoder(tokenizer)
    assert stream.feed([0xE4]) == ""  # may still become a character
    assert stream.feed([0xBD]) == ""
    assert stream.feed([0x41]) == "\ufffdA"  # now it cannot
    assert stream.feed([0xFF]) == "\ufffd"  # never could
    assert stream.feed([0xE4]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


# --- BPE ------------------------------------------------------------------------------------


def test_bpe_ids_equal_the_library_s(bpe, bpe_file):
    from tokenizers import Tokenizer as Library

    library = Library.from_file(str(bpe_file))
    for text in ["The dog sleeps.", "你好 世界", "x  y\n\nz", "<|padding|> a"]:
        ids = library.encode(text).ids
        assert bpe.encode(text, allow_special=True) == ids
        assert bpe.decode(ids, keep_special=True) == library.decode(ids, skip_special_tokens=False)
        assert bpe.decode(ids) == library.decode(ids)


@quick
@given(ids=st.lists(st.integers(0, 359), max_size=20))
def test_bpe_decodes_any_ids_as_the_library_does(bpe, bpe_file, ids):
    from tokenizers import Tokenizer as Library

    assert bpe.decode(ids) == Library.from_file(str(bpe_file)).decode(ids)


def test_line_breaks_at_the_end_of_a_prompt_are_those_before_a_word(bpe):
    for breaks in ("\n\n", "\n\n\n", "\n\n\n\n"):
        followed = bpe.encode(f"a{breaks}b")
        assert bpe.encode_prompt(f"a{breaks}") == followed[:-1]
    assert bpe.encode("a\n\n") != bpe.encode_prompt("a\n\n")
    assert bpe.encode_prompt("a\n") == bpe.encode("a\n")


def test_pile_prompts_end_in_two_line_breaks_not_one_double(shared_dir):
    pile = BpeTokenizer(shared_dir / "20B_tokenizer.json")
    assert pile.vocab_size == 50277
    assert pile.special_tokens == {"<|endoftext|>": 0, "<|padding|>": 1}
    assert pile.encode("Q: why?\n\n")[-1] == 535
    assert pile.encode_prompt("Q: why?\n\n")[-2:] == [187, 187]
    assert pile.encode_prompt("\n\n") == [187, 187]
    assert pile.encode("a        b<|endoftext|>", allow_special=True)[-1] == 0
    text = "Runs of spaces:        \n\n    def f():\n" * 3 + "<|endoftext|> 你好"
    assert pile.decode(pile.encode(text)) == text


def test_tokens_of_the_file_s_post_processor_are_not_added(bpe_file, tmp_path):
    from tokenizers import Tokenizer as Library
    from tokenizers.processors import TemplateProcessing

    library = Library.from_file(str(bpe_file))
    library.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    library.enable_truncation(2)
    library.save(str(tmp_path / "tokenizer.json"))
    changed = BpeTokenizer(tmp_path)
    assert changed.encode("The lazy dog") == BpeTokenizer(bpe_file).encode("The lazy dog")


def test_bytes_survive_a_normaliser_that_changes_text(bpe_file, tmp_path):
    from tokenizers import Tokenizer as Library
    from tokenizers import normalizers

    library = Library.from_file(str(bpe_file))
    library.normalizer = normalizers.NFC()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = BpeTokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "é"
    assert tokenizer.decode(tokenizer.encode_bytes("e\u0301".encode())) == "e\u0301"


@pytest.mark.parametrize("content", ["", "{}", '{"model": 3}', "\x00", "[" * 5000])
def test_a_damaged_tokenizer_file_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: damaged"):
        BpeTokenizer(path)


def test_a_tokenizer_that_loses_text_is_refused(tmp_path):
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers

    library = Library(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="byte-level"):
        BpeTokenizer(tmp_path)


# --- World ----------------------------------------------------------------------------------


def test_world_facts(world):
    assert world.vocab_size == 65530
    assert world.encode("\n") == [11]
    assert world.encode("\n\n") == [261]
    assert sum(entry is not None and entry != b"" for entry in world.table) == 65529
    assert world.encode("<|endoftext|>", allow_special=True) == [0]


@quick
@given(text=st.text(max_size=60))
def test_world_ids_are_the_greedy_longest_matches(world, text):
    """The definition, written as a loop over the table."""
    id_of = {entry: i for i, entry in enumerate(world.table) if entry}
    data, want, at = text.encode(), [], 0
    while at < len(data):
        size = next(n for n in range(min(128, len(data) - at), 0, -1) if data[at : at + n] in id_of)
        want.append(id_of[data[at : at + size]])
        at += size
    assert world.encode(text) == want


def test_world_ids_equal_the_rwkv_package_s(world):
    pytest.importorskip("rwkv")
    from pathlib import Path

    import rwkv
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    oracle = TRIE_TOKENIZER(str(Path(rwkv.__file__).parent / "rwkv_vocab_v20230424.txt"))
    text = "Hello 你好\n\nUser: how's life?   \t🙂 été 12345\n" * 3
    assert world.encode(text) == oracle.encode(text)
    assert world.decode_bytes(range(1, 65530)) == oracle.decodeBytes(list(range(1, 65530)))


@pytest.mark.parametrize(
    "content",
    [
        "1 'a' 1\n1 'b' 1\n",
        "1 'ab' 1\n",
        "1 __import__('os').system('touch ran') 1\n",
        "1 'a'\n",
        "nonsense",
        "1 'a' 'b' 2\n9999999999 'c' 1\n",
        "1 'a' 1\n",
    ],
)
def test_a_damaged_vocabulary_is_refused_and_never_executed(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rwkv_vocab_v20230424.txt"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=r"rwkv_vocab_v20230424\.txt: damaged"):
        WorldTokenizer(path)
    assert not (tmp_path / "ran").exists()


def test_a_panic_of_the_encoding_library_is_a_typed_error(world, tmp_path):
    """pyrwkv-tokenizer panics, which is no Exception, where the file is gone."""
    path = tmp_path / "rwkv_vocab_v20230424.txt"
    path.write_bytes(world.path.read_bytes())
    damaged = WorldTokenizer(path)
    path.unlink()
    with pytest.raises(TokenizerError, match="damaged vocabulary"):
        damaged.encode("a")


# --- finding --------------------------------------------------------------------------------


def test_a_file_beside_the_checkpoint_wins(tmp_path, bpe_file, world):
    (tmp_path / "tokenizer.json").write_bytes(bpe_file.read_bytes())
    assert find_tokenizer(tmp_path, 360).name == "BPE (360)"
    assert find_tokenizer(tmp_path, 65536).name == "BPE (360)"
    with pytest.raises(TokenizerError, match="do not belong together"):
        find_tokenizer(tmp_path, 97)


def test_the_world_vocabulary_is_found_by_file_by_class_and_by_size(tmp_path, world):
    assert find_tokenizer(tmp_path, 65536).name == "World"
    assert find_tokenizer(None, 65536).name == "World"
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "RWKVWorldTokenizer"}')
    assert find_tokenizer(tmp_path, 65544).name == "World"
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: damaged"):
        find_tokenizer(tmp_path, 65544)
    (tmp_path / "own").mkdir()
    world.save(tmp_path / "own")
    assert find_tokenizer(tmp_path / "own", 65544).path.parent == tmp_path / "own"


def test_bytes_are_found_by_size():
    assert find_tokenizer(None, 257).encode("a") == [98]
    assert find_tokenizer(None, 256).encode("a") == [97]


def test_what_is_missing_and_where_it_looked_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TokenizerError) as caught:
        find_tokenizer(".", 1234)  # a folder that a message should not call "."
    for word in ("1234", "tokenizer.json", str(tmp_path), "token ids", "tokenizer=PATH"):
        assert word in str(caught.value)


def test_the_pile_tokenizer_is_taken_from_the_hugging_face_cache(tmp_path, shared_dir, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TokenizerError, match=r"20B_tokenizer\.json"):
        find_tokenizer(None, 50277)
    cached = tmp_path / "models--EleutherAI--gpt-neox-20b"
    snapshot = cached / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").symlink_to(shared_dir / "20B_tokenizer.json")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert find_tokenizer(None, 50277).vocab_size == 50277


def test_load_by_name_and_path(tmp_path, bpe_file, world):
    assert load_tokenizer("world").name == "World"
    assert load_tokenizer("bytes").vocab_size == 257
    assert load_tokenizer(bpe_file).vocab_size == 360
    assert load_tokenizer(bpe_file.parent).vocab_size == 360
    assert load_tokenizer(world.path).vocab_size == 65530
    with pytest.raises(TokenizerError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "missing.json")
    with pytest.raises(TokenizerError, match="no tokenizer in this folder"):
        load_tokenizer(tmp_path)


def test_saving_writes_the_file_that_is_found(tmp_path, bpe, world):
    bpe.save(tmp_path)
    bpe.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "BPE"
    again = find_tokenizer(tmp_path, 360)
    again.save(tmp_path)  # onto itself
    assert again.encode("The dog") == bpe.encode("The dog")


def test_tokenizers_need_neither_torch_nor_transformers(bpe_file):
    code = (
        "import sys; from wkv.tokenizer import load_tokenizer as l;"
        f"l('world').encode('a'); l({str(bpe_file)!r}).encode('a');"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
