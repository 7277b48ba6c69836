"""The builders of the instruction data, on a few lines of text and a dictionary made by hand."""

import json
import random
import re

import pytest

NOUNS = """\
00000001 03 n 01 thing 0 001 ~ 00000002 n 0000 | all that is
00000002 03 n 01 animal 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | a living thing that moves
00000003 03 n 02 dog 0 hound 0 001 @ 00000002 n 0000 | a beast (of a house) that barks; more; "the \
dog barked all night at us"; "a dog"
00000004 03 n 01 peace 0 001 ! 00000005 n 0101 | a state without fighting
00000005 03 n 01 war 0 001 ! 00000004 n 0101 | a state of fighting
00000006 03 n 01 boor 0 000 | an offensive term for a person
"""
VERBS = "00000007 29 v 01 bark 0 000 00 | make the noise that dogs make\n"


def index(**offsets):
    return "".join(f"{word} n 1 0 1 1 {offset:08}  \n" for word, offset in offsets.items())


@pytest.fixture
def dictionary(tmp_path):
    for part in ("adj", "adv"):
        (tmp_path / f"data.{part}").write_text("")
        (tmp_path / f"index.{part}").write_text("")
    (tmp_path / "data.noun").write_text("  1 licence\n" + NOUNS)
    (tmp_path / "data.verb").write_text(VERBS)
    words = {"thing": 1, "animal": 2, "dog": 3, "hound": 3, "peace": 4, "war": 5, "boor": 6}
    (tmp_path / "index.noun").write_text("  1 licence\n" + index(**words) + index(bark=2))
    (tmp_path / "index.verb").write_text("bark v 2 0 2 2 00000007 00000007  \n")
    return tmp_path


@pytest.fixture
def words(script, dictionary):
    found = script("instructions.wordnet").read_words(dictionary, lambda word: word != "thing")
    return {word.text: word for word in found}


def rngs(count=40):
    return map(random.Random, range(count))


def made(build, *material, count=40):
    """What a builder makes of material with several random generators."""
    return [e for rng in rngs(count) if (e := build(*material, rng))]


def test_words_are_read_in_their_commonest_meaning_with_their_relations(words):
    dog = words["dog"]
    assert (dog.meaning, dog.kind, dog.synonyms) == ("a beast that barks", "animal", ("hound",))
    assert dog.examples == ("the dog barked all night at us",)
    assert dog.roots == {1, 2}
    assert words["war"].opposite == "peace"
    assert (words["bark"].part_of_speech, words["bark"].other_parts) == ("verb", True)
    assert words["animal"].kind is None  # of "thing", which says nothing
    assert set(words) == {"animal", "dog", "hound", "peace", "war", "bark"}


def test_a_synset_with_examples_lies_on_the_side_of_its_corpus_document(words):
    assert words["dog"].document == "wordnet/noun/0"
    assert words["war"].document == "wordnet/noun-5"


def test_questions_about_a_word_are_answered_by_its_entry(script, words):
    tasks = script("instructions.words")
    dog = words["dog"]
    wanted = {
        tasks.define: "A beast that barks.",
        tasks.word_for: "dog",
        tasks.use: "The dog barked all night at us.",
        tasks.part_of_speech: "dog is a noun.",
        tasks.synonym: "hound",
        tasks.kind: "A kind of animal.",
    }
    for build, answer in wanted.items():
        found = made(build, dog)
        assert {e.output for e in found} == {answer}
        assert len({e.instruction for e in found}) >= 3
    assert made(tasks.opposite, dog) == []
    assert made(tasks.part_of_speech, words["bark"]) == []
    assert {e.output for e in made(tasks.define, words["bark"])} == {
        "To make the noise that dogs make."
    }


def test_what_is_looked_up_stands_on_the_page(script, words):
    for example in made(script("instructions.words").look_up, list(words.values())):
        page = dict(line.split(": ") for line in example.input.split("\n"))
        answer = example.output[0].lower() + example.output[1:].rstrip(".")
        assert example.output in page or answer in page.values()


def test_choices_and_lists_hold_what_they_should(script, words):
    tasks = script("instructions.words")
    dog = words["dog"]
    kinds = {
        "animal": [dog] * 5,
        "fruit": [words["peace"]] * 5,
        "tool": [words["war"]] * 5,
    }
    for example in made(tasks.choose, kinds):
        right = {"animal": "dog", "fruit": "peace", "tool": "war"}
        asked = next(k for k in right if re.search(rf"\b{k}[: ]", example.instruction))
        assert example.output == right[asked]
        assert example.output in example.instruction
    for example in made(tasks.name_some, {"animal": [dog] * 5}):
        number = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
        said = [w.strip(".?") for w in example.instruction.split()]
        count = next((number.get(w) or int(w) for w in said if w in number or w.isdigit()), 1)
        assert len(re.findall("dog", example.output, re.IGNORECASE)) == count


def test_other_dictionaries_give_their_definitions_without_references(script):
    tasks = script("instructions.words")
    (found,) = made(tasks.devil, "d/1", "BORE, n. A person who talks when\nyou wish.", count=1)
    assert found.output == "A person who talks when you wish."
    assert "bore" in found.instruction
    entry = "frob: /frob/, n. [from MIT] A small thing that fits a hand. See widget. 2. More."
    (found,) = made(tasks.hacker, "j/1", entry, count=1)
    assert found.output == "A small thing that fits a hand."


# --- passages -------------------------------------------------------------------------------------

TEXT = (
    "Tom loved the old white horse. He rode it to the river. Mr. Darcy had been there before. "
    "Was Sally angry with them? She was not at all!"
)


@pytest.fixture
def paragraph(script):
    record = {"id": "austen/x/1", "source": "austen", "text": f"CHAPTER I\n\n{TEXT}"}
    (found,) = script("instructions.passages").paragraphs_of(record)
    return found


def test_sentences_end_neither_at_titles_nor_inside_quotation_marks(script, paragraph):
    assert len(paragraph.sentences) == 5
    assert paragraph.sentences[2] == "Mr. Darcy had been there before."
    sentences = script("instructions.passages").sentences
    assert sentences('"Go!" he said. "No." He went.') == ['"Go!" he said.', '"No."', "He went."]


def test_questions_about_a_sentence_are_answered_by_it(script, paragraph):
    p = script("instructions.passages")
    for e in made(p.place, paragraph, count=100):
        inside = [w.strip(".,?!") for w in e.input.split()]
        if e.task in ("first word", "last word"):
            assert e.output == inside[0 if e.task == "first word" else -1]
        else:
            given = next(w for w in inside if re.search(rf"(after|before) \"?{w}\b", e.instruction))
            step = 1 if " after " in e.instruction else -1
            assert e.output == inside[inside.index(given) + step]
    for e in made(p.count, paragraph):
        assert int(e.output) == len(e.input.split())
    for e in made(p.find, paragraph):
        assert e.output in paragraph.sentences
        assert e.output in e.input
    answers = {e.input[-1]: e.output for e in made(p.sort_of, paragraph, count=100)}
    assert answers == {".": "A statement.", "?": "A question.", "!": "An exclamation."}


def test_a_sentence_is_rewritten_as_asked(script, paragraph):
    for e in made(script("instructions.passages").rewrite, paragraph, count=200):
        if "capital" in e.instruction or "upper" in e.instruction:
            assert e.output == e.input.upper()
        elif "small" in e.instruction or "lower" in e.instruction:
            assert e.output == e.input.lower()
        elif "quot" in e.instruction.lower():
            assert e.output == f'"{e.input}"'
        elif "word" in e.instruction:
            assert len(e.output.split("\n")) == len(e.input.split())
        else:
            assert e.output == e.input


def test_a_blank_is_filled_by_the_word_that_was_taken_out(script, paragraph):
    p = script("instructions.passages")
    for e in made(lambda rng: p.blank(paragraph, rng, ["lamp"])):
        assert e.input.replace("____", e.output) in paragraph.sentences
        assert "lamp" in e.instruction
    for e in made(lambda rng: p.contains(paragraph, rng, ["lamp", "horse"]), count=100):
        word = re.search(r'word "?(\w+)', e.instruction)[1]
        assert e.output == ("Yes." if re.search(rf"\b{word}\b", e.input) else "No.")


def test_who_and_names_are_asked_only_of_known_names(script, paragraph):
    p = script("instructions.passages")
    known = frozenset({"Tom", "Darcy"})
    found = {
        e.instruction.split("name. ")[-1]: e.output for e in made_with(p.who, paragraph, known)
    }
    assert found == {
        "Who loved the old white horse?": "Tom.",
        "Who had been there before?": "Mr. Darcy.",
    }
    found = {e.output for e in made_with(p.names, paragraph, known)}
    assert found <= {"Tom", "Darcy", "Tom, Darcy"}
    assert "Darcy" in found


def made_with(build, paragraph, known):
    return made(lambda rng: build(paragraph, rng, known), count=100)


@pytest.mark.parametrize(
    ("text", "speaker", "words"),
    [
        ('The man said to him, "Come with me now." He went.', "the man", "Come with me now."),
        ('"I am sure of it," said Mrs. Norris, smiling.', "Mrs. Norris", "I am sure of it."),
    ],
)
def test_speech_is_found_with_its_speaker(script, text, speaker, words):
    p = script("instructions.passages")
    paragraph = p.Paragraph("d", "austen", tuple(p.sentences(text)))
    for e in made(p.said, paragraph):
        if e.task == "what was said":
            assert (speaker in e.instruction, e.output) == (True, words)
        else:
            assert e.output == f"{speaker[0].upper()}{speaker[1:]}."
        assert words.rstrip(".") in e.input


def test_a_pronoun_is_no_speaker(script):
    p = script("instructions.passages")
    assert made(p.said, p.Paragraph("d", "bible", ('He said, "Come with me now."',))) == []


def test_continuations_are_what_the_text_goes_on_with(script, paragraph):
    c = script("instructions.continuations")
    whole = " ".join(paragraph.sentences)
    for e in made(c.go_on, paragraph):
        assert f"{e.input} {e.output}" in whole
    comma = script("instructions.passages").Paragraph(
        "d", "bible", ("When the morning came, the men went out to the field.",)
    )
    assert {(e.input, e.output) for e in made(c.finish, comma)} == {
        ("When the morning came,", "the men went out to the field.")
    }
    for e in made(c.manner, paragraph):
        assert e.output in whole
        if e.task == "begin":
            assert e.output.startswith(e.instruction.split(": ")[1])


def test_scenes_are_neighbouring_speeches_and_lines_have_their_speakers(script):
    c = script("instructions.continuations")
    speeches = ("Words, words.", "What is the matter?", "Between who?")
    names = ("HAMLET", "POLONIUS", "HAMLET")
    text = "\n\n".join(["SCENE I.", *(f"{n}.\n{s}" for n, s in zip(names, speeches))])
    (scene,) = c.scenes_of({"id": "s", "text": text})
    assert scene.speeches == tuple(zip(names, speeches))
    for e in made(c.speaker, scene):
        if "first" in e.instruction or "Words" in e.instruction:
            assert e.output == "Hamlet."
        else:
            assert e.output == "Polonius."
    assert {e.output for e in made(c.scene_on, scene)} == {"HAMLET.\nBetween who?"}


# --- facts, and the whole -------------------------------------------------------------------------

PROFILE = {
    "Government": {
        "Country name": {"conventional short form": {"text": "Bahamas, The"}},
        "Capital": {"name": {"text": "Nassau (on New Providence)"}},
    },
    "People and Society": {
        "Languages": {"text": "English (official) 90.5%, Creole, other 3%"},
        "Population": {"text": "324,597 (July 2015 est.)"},
    },
    "Geography": {"Location": {"text": None}, "Map references": {"text": "North America"}},
    "Economy": {"Exchange rates": {"text": "Bahamian dollars (BSD) per US dollar - 1 (2014)"}},
}


def test_a_country_s_plain_facts_are_read_and_asked_for(script):
    facts = script("instructions.facts")
    found = facts.country(PROFILE)
    assert found == {
        "name": "The Bahamas",
        "capital": "Nassau",
        "region": "North America",
        "population": "324,597",
        "languages": "English, Creole",
        "currency": "Bahamian dollars",
    }
    answers = {e.output for e in facts.by_heart(found, random.Random(0))}
    assert "The capital of the Bahamas is Nassau." in answers
    for e in made(facts.from_sheet, "f", found):
        value = next(v for v in found.values() if v in e.output and v != found["name"])
        assert value in e.input


def test_everything_about_itself_is_asked_once_and_fits_any_size_of_model(script):
    found = list(script("instructions.facts").about_itself())
    assert len({e.instruction for e in found}) == len(found) > 300
    assert not any(re.search(r"\d{2,}", e.output) for e in found)


def test_the_same_seed_draws_the_same_and_nothing_twice(script):
    build = script("bundled_instructions")
    example = script("instructions.example").Example

    def draw(rng):
        n = rng.randrange(8)
        return example("t", "d", str(n), "", str(n)) if n else None

    found = list(build.drawn(draw, 5, "s"))
    assert found == list(build.drawn(draw, 5, "s"))
    assert len(set(found)) == 5
    assert len(list(build.drawn(draw, 50, "s"))) == 7


def test_plain_text_is_cut_between_paragraphs_and_is_not_more_than_asked(script):
    plain = script("bundled_instructions").plain
    block = "x" * 150
    records = [{"text": "\n\n".join([block] * 80)}, {"text": "\n\n".join([block] * 3)}] * 4
    found = list(plain(records, 12_000, "s"))
    assert 8_000 < sum(len(r["text"]) for r in found) <= 12_000
    assert all(set(r["text"].split("\n\n")) == {block} for r in found)


def test_the_table_of_tasks_counts_what_was_written(script, tmp_path, capsys):
    row = {"instruction": "Count.", "input": "a | b", "output": "2", "task": "count"}
    rows = {"train": [row, row, {"text": "plain"}], "validation": [row]}
    script("bundled_instructions").report(tmp_path, rows)
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert found["count"] == {"train": 2, "validation": 1, "bytes": 24}
    assert "| count | 2 | 1 | 0 | Count. ⟶ a \\| b ⟶ 2 |" in capsys.readouterr().out
