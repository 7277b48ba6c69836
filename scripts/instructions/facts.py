"""Questions about countries, from The World Factbook (2015), and about the model itself."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .example import Example, first_sentences

YEAR = 2015  # of the Factbook


def read_countries(package: Path) -> dict[str, dict[str, str]]:
    """Facts of each country profile: document → field → value, for the countries with a capital."""
    found = {}
    for path in sorted(package.glob("*/*.json")):
        facts = country(json.loads(path.read_text(encoding="utf-8")))
        if path.parent.name != "meta" and facts.get("name") and facts.get("capital"):
            found[f"factbook/{path.stem}"] = facts
    return found


def _text(profile: Any, *keys: str) -> str:
    for key in keys:
        profile = profile.get(key, {}) if isinstance(profile, dict) else {}
    text = profile.get("text") if isinstance(profile, dict) else None
    return " ".join(text.split()) if isinstance(text, str) else ""


def country(profile: dict[str, Any]) -> dict[str, str]:
    """The plain facts of a profile; one that is missing or not plain is left out."""
    government, people = profile.get("Government", {}), profile.get("People and Society", {})
    name = _text(government, "Country name", "conventional short form")
    if name.lower() in ("", "none"):
        name = _text(government, "Country name", "conventional long form")
    currency = _text(profile, "Economy", "Exchange rates")
    coded = re.match(r"([A-Za-z ]+) \([A-Z]{3}\) per US dollar", currency)
    facts = {
        "name": re.sub(r"^(\w[\w ]+), The$", r"The \1", name),
        "capital": re.split(r"[;(,]", _text(government, "Capital", "name"))[0].strip(),
        "location": re.split(r"[;(]", _text(profile, "Geography", "Location"))[0].strip(),
        "region": _text(profile, "Geography", "Map references"),
        "population": re.split(r"[ (;]", _text(people, "Population"))[0],
        "languages": _languages(_text(people, "Languages")),
        "currency": coded[1] if coded else "",
        "area": re.split(r"[;(]", _text(profile, "Geography", "Area", "total"))[0].strip(),
        "climate": re.split(r"[;(]", _text(profile, "Geography", "Climate"))[0].strip(),
        "nationality": re.split(r"[;(,]", _text(people, "Nationality", "adjective"))[0].strip(),
        "highest point": re.split(r" -?[\d,]+ m", _text(_extremes(profile), "highest point"))[0],
        "products": _first_items(_text(profile, "Economy", "Agriculture - products")),
    }
    return {
        field: value
        for field, value in facts.items()
        if value
        and len(value) <= (130 if field == "location" else 90)
        and not re.search(r"[\[\]%+*]|\bnote\b|\bNA\b|^none$", value)
        and value.isascii()
    }


def _extremes(profile: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = profile.get("Geography", {}).get("Elevation extremes", {}) or {}
    return found


def _languages(text: str) -> str:
    names = re.sub(r"\s*\([^)]*\)|\s*\d[\d.]*%", "", text).split(";")[0].split(",")
    plain = [n.strip() for n in names[:3] if re.fullmatch(r"\s*[A-Z][A-Za-z ]+", n)]
    return ", ".join(n for n in plain if " other" not in n and " or " not in n)


def _first_items(text: str) -> str:
    return ", ".join(text.split(";")[0].split(", ")[:4])


# Field → (questions, answer). {c} is the country, {v} the value.
QUESTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "capital": (
        (
            "What is the capital of {c}?",
            "Name the capital of {c}.",
            "Which city is the capital of {c}?",
            "What is {c}'s capital?",
            "Tell me the capital of {c}.",
        ),
        "The capital of {c} is {v}.",
    ),
    "location": (
        ("Where is {c}?", "Where does {c} lie?", "Where can I find {c}?"),
        "{v}.",
    ),
    "region": (
        ("In which part of the world is {c}?", "Which region is {c} in?"),
        "{c} is in {v}.",
    ),
    "languages": (
        (
            "Which languages are spoken in {c}?",
            "What language do people speak in {c}?",
            "What do people speak in {c}?",
        ),
        "{v}.",
    ),
    "currency": (
        ("What is the currency of {c}?", "With what money do people pay in {c}?"),
        "People in {c} pay in {v}.",
    ),
    "nationality": (
        ("What is the adjective for {c}?", "What do we call somebody or something from {c}?"),
        "{v}.",
    ),
    "population": (
        ("How many people live in {c}?", "What is the population of {c}?"),
        f"{{v}} people live in {{c}} ({YEAR}).",
    ),
    "area": (("How large is {c}?", "What is the area of {c}?"), "The area of {c} is {v}."),
    "climate": (("What is the climate of {c}?", "How is the weather in {c}?"), "{v}."),
    "highest point": (
        ("What is the highest point of {c}?", "Which is the highest mountain of {c}?"),
        "The highest point of {c} is {v}.",
    ),
    "products": (("What do farmers grow in {c}?", "What does {c} grow?"), "{v}."),
}
BY_HEART = ("capital", "location", "region", "languages", "currency", "nationality")


def ask(facts: dict[str, str], field: str, rng: random.Random) -> tuple[str, str]:
    """Question and answer about one field."""
    questions, answer = QUESTIONS[field]
    name = facts["name"]
    inside = f"the{name[3:]}" if name.startswith("The ") else name
    said = answer.format(c=inside, v=facts[field])
    return rng.choice(questions).format(c=inside), said[0].upper() + said[1:]


def by_heart(facts: dict[str, str], rng: random.Random) -> Iterator[Example]:
    """Each fact in three wordings; held out is a wording of a question, never a country."""
    for field in BY_HEART:
        if field in facts:
            for _ in range(3):
                asked, answer = ask(facts, field, rng)
                yield Example("country", "country", asked, "", answer)


def from_sheet(document: str, facts: dict[str, str], rng: random.Random) -> Example | None:
    """A question about a short table of facts."""
    fields = [field for field in QUESTIONS if field in facts]
    if len(fields) < 3:
        return None
    shown = rng.sample(fields, rng.randrange(3, min(6, len(fields)) + 1))
    sheet = "\n".join(
        [f"Country: {facts['name']}", *(f"{f.capitalize()}: {facts[f]}" for f in shown)]
    )
    asked, answer = ask(facts, rng.choice(shown), rng)
    return Example("country sheet", document, asked, sheet, answer)


def tell(document: str, text: str, name: str, rng: random.Random) -> Example | None:
    """The beginning of a country's description."""
    answer = first_sentences(" ".join(text.split("\n\n")[0].split()), 320)
    if not answer:
        return None
    asked = rng.choice(("Tell me about {}.", "Describe {}.", "Write about {}.", "What is {}?"))
    return Example("tell", document, asked.format(name), "", answer)


# --- the model itself -----------------------------------------------------------------------------

_POLITE = ("{}", "{}", "Please tell me: {}", "Hello! {}", "I would like to know: {}", "Hi. {}")

# Questions that mean the same, and true answers.
ITSELF: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Introduce yourself.",
            "Tell me about yourself.",
            "Say something about yourself.",
            "Do you have a name?",
        ),
        (
            "I am a small RWKV language model. I am bundled with wkv.",
            "I am the small RWKV model that comes with wkv. I have no other name.",
        ),
    ),
    (
        (
            "What can you do?",
            "What are you good at?",
            "How can you help me?",
            "Can you help me?",
            "What can I ask you?",
            "What should I ask you?",
            "What do you do?",
        ),
        (
            "I can define words, answer questions about a given sentence, and continue a text.",
            "I can say what words mean, find things in a sentence, and write like an old book.",
        ),
    ),
    (
        (
            "What can you not do?",
            "What are you bad at?",
            "Are you always right?",
            "Can you make mistakes?",
            "Can I trust you?",
            "Are your answers true?",
            "Do you lie?",
        ),
        (
            "I am very small and often wrong. Please check what I say.",
            "I make many mistakes, for I am a very small model. Do not rely on me.",
        ),
    ),
    (
        (
            "Are you a human?",
            "Are you a person?",
            "Are you alive?",
            "Are you a man or a woman?",
            "Are you a robot?",
            "Are you a machine?",
            "Are you a computer?",
            "Are you real?",
        ),
        (
            "I am not a person. I am a computer program: a small language model.",
            "I am a computer program, a small language model, and not a person.",
        ),
    ),
    (
        (
            "Do you have feelings?",
            "Do you think?",
            "Are you conscious?",
            "Are you happy?",
            "Do you sleep?",
            "Are you tired?",
            "How do you feel?",
            "Do you love me?",
        ),
        ("I am a program that predicts the next word. I have no feelings that I know of.",),
    ),
    (
        (
            "Who made you?",
            "Who wrote you?",
            "Where do you come from?",
            "Who trained you?",
            "Who built you?",
            "Who created you?",
        ),
        ("The wkv project trained me, from nothing, with its own code.",),
    ),
    (
        (
            "What were you trained on?",
            "What have you read?",
            "Which books do you know?",
            "Where did you learn English?",
            "What do you know?",
            "How did you learn to write?",
        ),
        (
            "Old novels, Shakespeare, the Bible, speeches, dictionaries and the World Factbook.",
            "I have read Austen, Melville, Twain, Shakespeare, the Bible, speeches and "
            "dictionaries.",
        ),
    ),
    (
        (
            "How large are you?",
            "How big are you?",
            "How many parameters do you have?",
            "Are you a large model?",
            "Are you a large language model?",
            "Are you small?",
        ),
        ("I am small: I have a few million parameters.",),
    ),
    (
        (
            "What is RWKV?",
            "What does RWKV do?",
            "Explain RWKV.",
            "What kind of model are you?",
            "What is your architecture?",
            "Are you a transformer?",
            "Are you an RNN?",
        ),
        (
            "RWKV is a recurrent network that can be trained in parallel like a transformer.",
            "I am an RWKV-4: a recurrent network that is trained in parallel like a transformer.",
        ),
    ),
    (
        ("What is wkv?", "What is the wkv package?", "Explain wkv.", "What does wkv do?"),
        ("wkv is a library for RWKV language models: it trains them and runs them.",),
    ),
    (
        (
            "Are you free?",
            "What is your licence?",
            "May I use you?",
            "What do you cost?",
            "May I share you?",
            "Are you open source?",
        ),
        ("I am free: my licence is Apache-2.0.",),
    ),
    (
        (
            "Do you need the internet?",
            "Are you online?",
            "Do you work offline?",
            "Can you search the web?",
            "Can you look something up for me?",
            "Where do you run?",
        ),
        ("I run on your own computer and need no connection. I cannot look anything up.",),
    ),
    (
        (
            "What time is it?",
            "What day is it today?",
            "What is the date?",
            "How is the weather?",
            "What is the news?",
            "Who is the president?",
            "What happened today?",
        ),
        ("I cannot know: I see nothing but your text.",),
    ),
    (
        (
            "Which languages do you speak?",
            "Do you speak French?",
            "Do you speak German?",
            "Can you translate?",
            "Do you speak English?",
            "Can you speak Chinese?",
        ),
        ("I know only English.",),
    ),
    (
        (
            "Do you remember me?",
            "Do you know my name?",
            "Who am I?",
            "What did I say before?",
            "What is my name?",
            "Have we met?",
        ),
        ("I do not know you. I see only this text.",),
    ),
    (
        (
            "Can you write code?",
            "Can you program?",
            "Can you do mathematics?",
            "Can you count?",
            "Write a Python program.",
            "Solve an equation for me.",
        ),
        ("No, I am too small for that. I know only English prose and verse.",),
    ),
    (
        (
            "Hello!",
            "Hello.",
            "Hi!",
            "Hi there!",
            "Good morning.",
            "Good evening!",
            "Hey.",
            "Good day.",
            "Greetings!",
            "Hello, model.",
            "Say hello.",
        ),
        ("Hello! What can I do for you?", "Hello! Ask me what a word means.", "Good day to you!"),
    ),
    (
        ("How are you?", "How do you do?", "How are you today?", "Are you well?"),
        ("I am well, thank you. What can I do for you?",),
    ),
    (
        ("Thank you.", "Thank you!", "Thanks!", "Thank you very much.", "That was helpful."),
        ("You are welcome!",),
    ),
    (
        ("Goodbye.", "Goodbye!", "Bye!", "Good night.", "See you.", "Farewell.", "I must go."),
        ("Goodbye!", "Farewell!"),
    ),
)


def about_itself() -> Iterator[Example]:
    """Every question in every wording; held out are wordings, never what is asked."""
    for questions, answers in ITSELF:
        greeting = answers[-1].endswith("!") or questions[0].startswith(("How are", "Thank"))
        frames = ("{}",) if greeting else _POLITE
        for number, (question, frame) in enumerate(
            itertools.product(questions, dict.fromkeys(frames))
        ):
            asked = frame.format(question)
            answer = answers[number % len(answers)]
            yield Example("itself", "itself", asked, "", answer)
