from __future__ import annotations

import json

import pytest

from wkv.tokenizer.world_hf import RWKVWorldTokenizer, RwkvWorldTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return RwkvWorldTokenizer()


@pytest.fixture
def registered():
    """The classes known to AutoTokenizer by name, as ``wkv.hf.register`` makes them."""
    from transformers.models.auto import tokenization_auto as auto

    before = dict(auto.REGISTERED_TOKENIZER_CLASSES)
    for cls in (RwkvWorldTokenizer, RWKVWorldTokenizer):
        auto.REGISTERED_TOKENIZER_CLASSES[cls.__name__] = cls
    yield
    auto.REGISTERED_TOKENIZER_CLASSES.clear()
    auto.REGISTERED_TOKENIZER_CLASSES.update(before)


TEXTS = ["Hello world", "你好\n\nUser: x", " \t  🙂 é", "12345 <not special>"]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_equal_the_plain_tokenizer_s(tokenizer, world, text):
    ids = tokenizer(text).input_ids
    assert ids == world.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == ids


def test_zero_begins_ends_and_pads(tokenizer):
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert len(tokenizer) == tokenizer.vocab_size == 65530
    assert tokenizer("a<|endoftext|>").input_ids == [98, 0]
    assert 0 not in tokenizer("a<|endoftext|>", split_special_tokens=True).input_ids
    assert tokenizer.decode([98, 0], skip_special_tokens=True) == "a"
    assert tokenizer.decode([98, 65533]) == "a"


def test_batches_are_padded_on_the_left_with_their_mask(tokenizer):
    batch = tokenizer(["Hello", "a b c"], padding=True, return_tensors="pt")
    assert batch.input_ids.tolist() == [[0, 0, 33155], [98, 333, 334]]
    assert batch.attention_mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert set(batch) == {"input_ids", "attention_mask"}
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True) == ["Hello", "a b c"]


def test_the_vocabulary_names_every_entry_once(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == 65530
    assert sorted(vocabulary.values()) == list(range(65530))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("with_config", [False, True])
def test_auto_tokenizer_round_trips(tokenizer, tmp_path, with_config):
    from transformers import AutoTokenizer, RwkvConfig

    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "rwkv_vocab_v20230424.txt").is_file()
    if with_config:
        RwkvConfig(hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is RwkvWorldTokenizer
    assert again.padding_side == "left"
    assert again(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    again.save_pretrained(tmp_path)  # onto its own file
    assert AutoTokenizer.from_pretrained(tmp_path)("a").input_ids == [98]


@pytest.mark.usefixtures("registered")
def test_the_hub_s_world_repositories_load_without_remote_code(tmp_path, tokenizer):
    from transformers import AutoTokenizer, RwkvConfig

    RwkvConfig(hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "eos_token": "[EOS]",
                "pad_token": "[PAD]",
                "user_token": "[USER]",
                "tokenizer_class": "RWKVWorldTokenizer",
                "use_fast": False,
                "auto_map": {"AutoTokenizer": ["tokenization_x.RWKVWorldTokenizer", None]},
            }
        )
    )
    hub = AutoTokenizer.from_pretrained(tmp_path)
    assert type(hub) is RWKVWorldTokenizer
    assert hub.eos_token_id == hub.pad_token_id == 0
    assert hub("Hello").input_ids == [33155]
