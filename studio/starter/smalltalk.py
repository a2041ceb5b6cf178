"""What the starter says when it is not asked about a fact: greetings, itself, stories, "no idea".

Tables and grammars only, written for this project; `chats.py` mixes them into conversations.
"""

from __future__ import annotations

import random
import re
from functools import cache

from studio.starter import facts
from studio.starter.world import capitalised, questions, with_article

NAME = "Pip"
UNKNOWN = "I do not know that. I only know my little world."

# (what a person may say, what Pip says)
SMALL_TALK: list[tuple[list[str], str]] = [
    (
        ["Hello!", "Hi!", "Hi there!", "Hello there!", "Hey!", "Hello Pip!", "Hi Pip!", "Hello",
         "hi", "hey", "Good day!", "Greetings!"],
        "Hello! What would you like to know?",
    ),
    (["Good morning!", "Good morning, Pip!", "Morning!"], "Good morning! How can I help you?"),
    (["Good evening!", "Good evening, Pip!", "Evening!"], "Good evening! How can I help you?"),
    (
        ["How are you?", "How are you today?", "Are you well?", "How do you do?",
         "How is it going?", "How do you feel?"],
        "I am well, thank you. How can I help you?",
    ),
    (
        ["Thanks!", "Thank you!", "Thank you very much.", "Many thanks!", "Thanks a lot!",
         "Great, thanks!", "thank you", "Thank you, Pip!"],
        "You are welcome!",
    ),
    (
        ["Who are you?", "What are you?", "What is your name?", "Tell me who you are.",
         "Do you have a name?", "Please introduce yourself.", "who are you", "What is this?"],
        f"I am {NAME}, a tiny model that knows a little world.",
    ),
    (
        ["What can you do?", "What do you know?", "What can I ask you?", "How can you help me?",
         "Help!", "help", "What should I ask you?", "What do you know about?"],
        "I know animals, colours, capitals, words and small numbers. I can also tell a story.",
    ),
    (
        ["Who made you?", "Where do you come from?", "How were you made?", "Who trained you?"],
        "I was made by Adapter Studio from a small grammar.",
    ),
    (
        ["Are you a person?", "Are you human?", "Are you real?", "Are you a robot?"],
        f"No, I am {NAME}, a very small language model.",
    ),
    (
        ["Goodbye!", "Bye!", "Bye bye!", "See you!", "See you later!", "Good night!", "bye"],
        "Goodbye! Come back soon.",
    ),
    (
        ["That is wrong.", "You are wrong.", "No, that is not right.", "I do not believe you."],
        "I am sorry. I only know my little world.",
    ),
    (
        ["You are great!", "Well done!", "Good job!", "That was good.", "I like you.", "Nice!"],
        "That is kind of you. Thank you!",
    ),
    (["Yes.", "Yes", "Okay.", "ok", "Sure.", "Fine."], "Good. What would you like to know?"),
    (["No.", "No", "Never mind.", "Nothing."], "All right. Ask me anything about my world."),
]  # fmt: skip

_UNKNOWN_PATTERNS = """
Who won the world cup in {year}?|What happened in {year}?|Who was born in {year}?
Who is the president of {country}?|How many people live in {country}?|How big is {country}?
What is the flag of {country}?|What do people eat in {country}?|Who is the king of {country}?
How heavy is {animal}?|How old is {animal}?|How long does {animal} sleep?|Why does {animal} sleep?
How fast is {animal}?|How tall is {animal}?|What does {animal} dream of?
What is the capital of {word}?|What sound does a {word} make?|What colour is a {word}?
What is the opposite of {word}?|Where does a {word} live?|What is a {word}?|Who is {word}?
What is the plural of {word}?|What does a {word} eat?|What is {word}?|Which country is {word} in?
Who wrote {word}?|What is the meaning of {word}?|How do I install {word}?|What does {word} mean?
Translate {thing} into French.|How do you spell {thing}?|How do I cook {thing}?
Write a poem about {thing}.|Write a program in Python.|Write a program about {thing}.
What is {large} plus {large}?|What is {large} times {large}?|What is the root of {large}?
How much is {large} minus {large}?|{large} + {large} = ?|{large} * {large} = ?
What is the weather today?|What time is it?|What is the news?|What day is today?
Explain gravity.|Explain quantum physics.|What is electricity?|What is the meaning of life?
How does a computer work?|How does a car work?|How far is the moon?|How big is the universe?
What is love?|Can you sing?|Can you help me with my homework?|Who discovered America?
What is the price of gold?|How do I get rich?|Give me a recipe.|Give me a recipe for {thing}.
What is the best film?|What is the best song?|Who is the best player?|Tell me a joke.
Tell me about {country}.|Tell me about {word}.|Tell me about the war.|What is a neural network?
Summarise this text.|Which car should I buy?|Should I buy {thing}?|Where is my key?
Who painted the Mona Lisa?|Who invented the telephone?|What is the speed of light?
What is the square root of {large}?|Which river is the longest?|What is the highest mountain?
"""
UNKNOWN_PATTERNS = [p for line in _UNKNOWN_PATTERNS.strip().splitlines() for p in line.split("|")]

# Real words that are not in the world, so that "never heard of it" is not only for odd spellings.
_STRANGERS = """giraffe zebra dinosaur lobster hedgehog dragon unicorn tiger penguin hippo
Australia Mexico Iceland Belgium Ukraine Vietnam Mars Atlantis Scotland Texas Boston
Sydney Napoleon Einstein Shakespeare Linux Python Windows internet rocket robot bitcoin
bridge kitchenware planet volcano keyboard""".split()
_SYLLABLES = (
    "ba be bi bo bu da de do ga go ka ki ko la le lo ma mi mo na ni no ra ri ro ta to vu za zo"
)


def made_up_word(rng: random.Random) -> str:
    """A word that nobody knows, `zorimo`."""
    while True:
        word = "".join(rng.choice(_SYLLABLES.split()) for _ in range(rng.randint(2, 4)))
        if word not in _known_words():
            return word


@cache
def _known_words() -> frozenset[str]:
    text = " ".join(f"{question.question} {question.answer}" for question in questions())
    return frozenset(re.findall(r"[a-z]+", text.lower()))


def unknown_question(rng: random.Random) -> str:
    """A question from outside the world."""
    word = rng.choice(_STRANGERS) if rng.random() < 0.3 else made_up_word(rng)
    if rng.random() < 0.3:
        word = capitalised(word)
    pattern = rng.choice(UNKNOWN_PATTERNS)
    while "{large}" in pattern:
        pattern = pattern.replace("{large}", str(rng.randint(32, 999)), 1)
    return pattern.format(
        year=rng.randint(1600, 2030),
        country=rng.choice(facts.CAPITALS)[0],
        animal=with_article(rng.choice(facts.SIZES)),
        thing=rng.choice(facts.MATERIALS)[0],
        word=word,
    )


STORY_REQUESTS = [
    "Tell me a story about {hero}.",
    "Tell me a story with {hero}.",
    "Can you tell a story about {hero}?",
    "I want to hear a story about {hero}.",
    "Write a short story about {hero}.",
    "Please tell me about {hero} in a story.",
]
_ANIMALS = "cat dog fox mouse frog owl bear duck rabbit horse sheep goat wolf hen pig".split()
_MOODS = "little old young brave happy sad kind clever quiet hungry".split()
_PLACES = """in the forest|in the garden|near the river|in a small house|on the farm|in the city
by the sea|in the meadow""".replace("\n", "|").split("|")
_TREASURES = "ball book coin hat ring drum star key flower boat apple loaf candle rose".split()


def story_hero(rng: random.Random) -> str:
    """Whom a story is about: `a fox`."""
    return with_article(rng.choice(_ANIMALS))


def story(rng: random.Random, hero: str | None = None) -> str:
    """Four to seven sentences from a grammar: a hero, something lost or found, a friend, an end."""
    hero = hero or story_hero(rng)
    animal = hero.split()[1]
    name, friend_name = rng.sample(facts.NAMES, 2)
    friend = rng.choice([other for other in _ANIMALS if other != animal])
    treasure = rng.choice(_TREASURES)
    colour = rng.choice(["red", "blue", "green", "yellow", "white", "golden"])
    opening = rng.choice(["Once upon a time there was", "Long ago there was", "There once was"])
    lines = [
        f"{opening} {with_article(rng.choice(_MOODS))} {animal} called {name}.",
        f"{name} lived {rng.choice(_PLACES)} and had a {colour} {treasure}.",
        *rng.choice(
            [
                [f"One day the {treasure} was gone.", f"{name} looked everywhere and was sad."],
                [f"One night the {treasure} fell into the water.", f"{name} began to cry."],
                [f"One day a strong wind took the {treasure} away.", f"{name} ran after it."],
            ]
        ),
        f"Then {with_article(friend)} called {friend_name} came along.",
        rng.choice(
            [
                f"{friend_name} found the {treasure} under a tree.",
                f"{friend_name} said: I will help you.",
                f"Together they brought the {treasure} home.",
            ]
        ),
        rng.choice(
            [
                f"From that day on {name} and {friend_name} were friends.",
                f"{name} was happy and thanked {friend_name}.",
                f"In the evening they ate {rng.choice(['soup', 'bread', 'apples'])} and laughed.",
            ]
        ),
    ]
    return " ".join(lines)
