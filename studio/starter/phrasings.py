"""How each relation of the world is asked and answered.

A phrasing is a question pattern with its answer pattern: the wording of the question decides the
wording of the answer, so a greedy answer can be checked exactly, while the content word still
appears at the start, in the middle and at the end of answers. That variety is what lets a small
adapter move the word into a new frame.

Fields: `x` and `y` are the fact's words, `ax`/`ay` carry the article, `u` is the unit of a count;
a leading capital (`X`, `Ax`, `Y`, `Ay`) capitalises the field.
"""

from __future__ import annotations

PHRASINGS: dict[str, list[tuple[str, str]]] = {
    "sound": [
        ("What sound does {ax} make?", "{Ax} says {y}."),
        ("What does {ax} say?", "{Ax} says {y}."),
        ("What noise does {ax} make?", "The noise of {ax} is {y}."),
        ("Which sound comes from {ax}?", "{Y} is the sound of {ax}."),
        ("How does {ax} sound?", "It goes {y}, like every {x}."),
        ("Name the sound of {ax}.", "{Y} is what {ax} says."),
        ("What do you hear from {ax}?", "You hear {y} from {ax}."),
    ],
    "baby": [
        ("What is a baby {x} called?", "A baby {x} is called {ay}."),
        ("What do you call the young of {ax}?", "The young of {ax} is {ay}."),
        ("What is the name for a young {x}?", "{Ay} is a young {x}."),
        ("Name the baby of {ax}.", "{Y} is the word for a baby {x}."),
        ("What will grow up to be {ax}?", "{Ay} will grow up to be {ax}."),
        ("Which baby does {ax} have?", "It is called {ay}, the baby of {ax}."),
    ],
    "home": [
        ("Where does {ax} live?", "{Ax} lives in the {y}."),
        ("What is the home of {ax}?", "The home of {ax} is the {y}."),
        ("Where can I find {ax}?", "You can find {ax} in the {y}."),
        ("Where is {ax} at home?", "The {y} is home to {ax}."),
        ("Which place does {ax} live in?", "{Y} is the place for {ax}."),
        ("Where should I look for {ax}?", "Look in the {y} for {ax}."),
    ],
    "food": [
        ("What does {ax} eat?", "{Ax} eats {y}."),
        ("What does {ax} like to eat?", "{Ax} likes to eat {y}."),
        ("What should I feed {ax}?", "You should feed {y} to {ax}."),
        ("What is the food of {ax}?", "{Y} will feed {ax}."),
        ("Which food does {ax} love?", "{Y} can make {ax} happy."),
        ("What is a good meal for {ax}?", "A good meal for {ax} is {y}."),
    ],
    "colour": [
        ("What colour is {x}?", "{X} is {y}."),
        ("What is the colour of {x}?", "The colour of {x} is {y}."),
        ("Which colour does {x} have?", "{Y} is the colour of {x}."),
        ("Tell me the colour of {x}.", "It is {y}, the colour of {x}."),
        ("How would you paint {x}?", "I would paint {x} {y}."),
        ("Name the colour of {x}.", "{Y} is how {x} looks."),
        ("What colour do you think of for {x}?", "I think of {y} for {x}."),
    ],
    "capital": [
        ("What is the capital of {x}?", "The capital of {x} is {y}."),
        ("Which city is the capital of {x}?", "{y} is the capital of {x}."),
        ("Name the capital of {x}.", "It is {y}, the capital of {x}."),
        ("What is the main city of {x}?", "The main city of {x} is {y}."),
        ("What is {x}'s capital?", "{x}'s capital is {y}."),
        ("Which capital does {x} have?", "{x} has {y} as its capital."),
        ("Where does the government of {x} sit?", "The government of {x} sits in {y}."),
        ("Which city rules {x}?", "{y} rules {x}."),
    ],
    "country": [
        ("Which country has the capital {x}?", "The country with the capital {x} is {y}."),
        ("In which country is {x}?", "{x} is in {y}."),
        ("Where is the city of {x}?", "The city of {x} is in {y}."),
        ("{x} is the capital of which country?", "{y} has {x} as its capital."),
        ("Which country does {x} belong to?", "{x} belongs to {y}."),
        ("What country is {x} in?", "{y} is the country of {x}."),
    ],
    "continent": [
        ("On which continent is {x}?", "{x} is in {y}."),
        ("Which continent does {x} belong to?", "{x} belongs to {y}."),
        ("In which part of the world is {x}?", "{y} is the part of the world with {x}."),
        ("What continent is {x} on?", "The continent of {x} is {y}."),
        ("Name the continent of {x}.", "{y} is the continent of {x}."),
    ],
    "opposite": [
        ("What is the opposite of {x}?", "The opposite of {x} is {y}."),
        ("Tell me the opposite of {x}.", "{Y} is the opposite of {x}."),
        ("Which word is the opposite of {x}?", "The word is {y}, the opposite of {x}."),
        ("What is not {x}?", "What is {y} is not {x}."),
        ("If something is not {x}, what is it?", "If it is not {x}, it is {y}."),
        ("Name the contrary of {x}.", "{Y} is the contrary of {x}."),
        ("What is the contrary of {x}?", "The contrary of {x} is {y}."),
    ],
    "plural": [
        ("What is the plural of {x}?", "The plural of {x} is {y}."),
        ("One {x}, two what?", "One {x}, two {y}."),
        ("What is more than one {x}?", "More than one {x} is {y}."),
        ("Tell me the plural of {x}.", "{Y} is the plural of {x}."),
        ("Name the plural of the word {x}.", "It is {y}, the plural of {x}."),
        ("What do you call many of {ax}?", "{Y} means many of {ax}."),
    ],
    "past": [
        ("What is the past of {x}?", "The past of {x} is {y}."),
        ("What is the past tense of {x}?", "The past tense of {x} is {y}."),
        ("Today I {x}. What did I do yesterday?", "Yesterday you {y}."),
        ("Tell me the past form of {x}.", "{Y} is the past form of {x}."),
        ("How do you say {x} in the past?", "You say {y} for {x} in the past."),
        ("Name the past of the verb {x}.", "It is {y}, the past of {x}."),
    ],
    "maker": [
        ("What does {ax} make?", "{Ax} makes {y}."),
        ("What is made by {ax}?", "{Y} can come from {ax}."),
        ("What can I buy from {ax}?", "You can buy {y} from {ax}."),
        ("What is the work of {ax}?", "The work of {ax} is to make {y}."),
        ("Name what {ax} makes.", "{Y} can be made by {ax}."),
    ],
    "made_by": [
        ("Who makes {x}?", "{Ay} makes {x}."),
        ("Which worker makes {x}?", "The {y} makes {x}."),
        ("Where can {x} come from?", "{X} can come from {ay}."),
        ("Who should I ask for {x}?", "You should ask {ay} for {x}."),
        ("Whose job is it to make {x}?", "Making {x} is the job of {ay}."),
    ],
    "workplace": [
        ("Where does {ax} work?", "{Ax} works in the {y}."),
        ("What is the workplace of {ax}?", "The workplace of {ax} is the {y}."),
        ("Where can I meet {ax}?", "You can meet {ax} in the {y}."),
        ("Where do I have to go to see {ax}?", "Go to the {y} to see {ax}."),
        ("Which place needs {ax}?", "The {y} needs {ax}."),
        ("Name the place where {ax} works.", "{Y} is the place of {ax}."),
    ],
    "kind": [
        ("What is {ax}?", "{Ax} is a kind of {y}."),
        ("What kind of thing is {ax}?", "{Ax} is a kind of {y}."),
        ("What sort of thing is {ax}?", "It is a sort of {y}."),
        ("Which group does {ax} belong to?", "The {y} group has {ax} in it."),
        ("What type of thing is {ax}?", "{Y} is the type of {ax}."),
        ("What would you call {ax}?", "I would call {ax} a sort of {y}."),
    ],
    "material": [
        ("What is {ax} made of?", "{Ax} is made of {y}."),
        ("What do you need to make {ax}?", "You need {y} to make {ax}."),
        ("Which material is in {ax}?", "{Y} is the material of {ax}."),
        ("What is the material of {ax}?", "The material of {ax} is {y}."),
        ("Name what {ax} is made of.", "{Y} is what makes {ax}."),
    ],
    "sense": [
        ("What do we {x} with?", "We {x} with our {y}."),
        ("What do you use to {x}?", "You use your {y} to {x}."),
        ("Which part of the body helps us to {x}?", "The {y} can help us to {x}."),
        ("With what do people {x}?", "People {x} with the {y}."),
        ("Name what people use to {x}.", "{Y} can be used to {x}."),
    ],
    "count": [
        ("How many {u} does {x} have?", "{X} has {y} {u}."),
        ("What is the number of {u} of {x}?", "The number of {u} of {x} is {y}."),
        ("Count the {u} of {x}.", "{Y} {u} belong to {x}."),
        ("How many {u} are there in {x}?", "There are {y} {u} in {x}."),
        ("Tell me how many {u} {x} has.", "It is {y}, the number of {u} of {x}."),
    ],
    "plus": [
        ("What is {a} plus {b}?", "{a} plus {b} is {y}."),
        ("{a} + {b} = ?", "{a} + {b} = {y}."),
        ("How much is {a} and {b}?", "{a} and {b} make {y}."),
        ("Add {a} and {b}.", "The sum of {a} and {b} is {y}."),
        ("What is the sum of {a} and {b}?", "{y} is the sum of {a} and {b}."),
        ("I have {a} apples and get {b} more. How many have I?", "You have {y} apples."),
    ],
    "minus": [
        ("What is {a} minus {b}?", "{a} minus {b} is {y}."),
        ("{a} - {b} = ?", "{a} - {b} = {y}."),
        ("Take {b} away from {a}.", "{a} take away {b} is {y}."),
        ("What is left of {a} without {b}?", "{y} is left."),
        ("I have {a} apples and eat {b}. How many are left?", "You have {y} apples left."),
    ],
    "times": [
        ("What is {a} times {b}?", "{a} times {b} is {y}."),
        ("{a} * {b} = ?", "{a} * {b} = {y}."),
        ("Multiply {a} by {b}.", "The product of {a} and {b} is {y}."),
        ("How much is {a} times {b}?", "{y} is {a} times {b}."),
    ],
    "bigger": [
        ("Which is bigger, {ax} or {az}?", "{Ay} is bigger."),
        ("Is {ax} or {az} bigger?", "{Ay} is bigger than {an}."),
        ("Which one is smaller, {ax} or {az}?", "{An} is smaller."),
        ("Is {ax} bigger than {az}?", "{Ay} is bigger than {an}, so {yes}."),
        ("What is the larger animal, {ax} or {az}?", "The larger animal is {ay}."),
    ],
    "more": [
        ("Which is more, {a} or {b}?", "{y} is more than {n}."),
        ("Is {a} more than {b}?", "{y} is more than {n}, so {yes}."),
        ("Which number is less, {a} or {b}?", "{n} is less than {y}."),
        ("What is the bigger number, {a} or {b}?", "The bigger number is {y}."),
    ],
    "after": [
        ("What comes after {x}?", "After {x} comes {y}."),
        ("What follows {x}?", "{y} follows {x}."),
        ("What is next after {x}?", "Next after {x} is {y}."),
        ("{x} is over. What is next?", "Next is {y}."),
    ],
    "before": [
        ("What comes before {x}?", "Before {x} comes {y}."),
        ("What is just before {x}?", "{y} is just before {x}."),
        ("Name what comes before {x}.", "It is {y} that comes before {x}."),
        ("What leads to {x}?", "{y} leads to {x}."),
    ],
    "is_colour": [
        ("Is {x} {w}?", "{X} is {y}, so {yes}."),
        ("I think {x} is {w}. Is that right?", "{X} is {y}, so {yes}."),
        ("Would you call {x} {w}?", "I would call {x} {y}, so {yes}."),
    ],
}

# What a follow-up question can be, after a question of the same relation; `q` is the new `x`.
FOLLOW_UPS = ["And {q}?", "What about {q}?", "And what about {q}?", "How about {q}?"]
# Whose follow-ups make sense, and the field that names the new thing.
FOLLOWABLE = {
    "sound": "ax", "baby": "ax", "home": "ax", "food": "ax", "colour": "x", "capital": "x",
    "continent": "x", "opposite": "x", "plural": "x", "past": "x", "workplace": "ax",
    "material": "ax", "country": "x",
}  # fmt: skip
