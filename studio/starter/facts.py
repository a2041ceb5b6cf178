"""The tables of the starter's little world: every fact it knows, and nothing else.

Each relation is a list of `(x, y)` pairs, written by hand for this project. The pairs are a toy:
where the real world has several answers (a fox lives in a den, or a wood), the table picks one.
How the facts are asked and answered is in `phrasings.py`; this file knows no sentence.
"""

from __future__ import annotations


def _pairs(text: str) -> list[tuple[str, str]]:
    """Read `x: y, x: y` into pairs."""
    pairs = []
    for item in text.replace("\n", " ").split(","):
        x, _, y = item.partition(":")
        pairs.append((x.strip(), y.strip()))
    return pairs


SOUNDS = _pairs("""
cat: meow, dog: woof, cow: moo, duck: quack, sheep: baa, pig: oink, horse: neigh, lion: roar,
owl: hoot, frog: croak, bee: buzz, mouse: squeak, snake: hiss, wolf: howl, hen: cluck, crow: caw,
dove: coo, turkey: gobble, goose: honk, bird: tweet
""")

BABIES = _pairs("""
cat: kitten, dog: puppy, cow: calf, duck: duckling, sheep: lamb, pig: piglet, horse: foal,
lion: cub, owl: owlet, frog: tadpole, goat: kid, hen: chick, swan: cygnet, deer: fawn,
kangaroo: joey, goose: gosling, eagle: eaglet
""")

HOMES = _pairs("""
bee: hive, bird: nest, dog: kennel, spider: web, horse: stable, pig: sty, fox: den, rabbit: burrow,
cow: barn, bear: cave, squirrel: tree, frog: pond, camel: desert, monkey: jungle, whale: sea,
hen: coop, trout: river, wolf: forest, sheep: meadow, beetle: garden
""")

FOODS = _pairs("""
rabbit: carrots, monkey: bananas, squirrel: nuts, panda: bamboo, horse: hay, mouse: cheese,
bear: honey, frog: flies, cow: grass, hen: seeds, dog: bones, cat: fish, owl: mice, koala: leaves,
pig: apples, bat: moths, duck: snails, swan: weeds, goat: thistles, crow: worms
""")

COLOURS = _pairs("""
grass: green, the sky: blue, snow: white, coal: black, the sun: yellow, blood: red, a lemon: yellow,
a banana: yellow, a carrot: orange, a tomato: red, a cherry: red, chocolate: brown, milk: white,
the night: black, an elephant: grey, a flamingo: pink, a pig: pink, a frog: green, a plum: purple,
a pumpkin: orange, the sea: blue, a cucumber: green, a swan: white, a crow: black, a leaf: green,
a bear: brown, a lime: green, a pea: green, a strawberry: red, mud: brown, a cloud: white,
a grape: purple, a pearl: white, ash: grey, a fox: orange, lavender: purple, a rose: red,
salt: white, a mouse: grey, corn: yellow
""")

CAPITALS = _pairs("""
France: Paris, Spain: Madrid, Italy: Rome, Germany: Berlin, Portugal: Lisbon, Greece: Athens,
Austria: Vienna, Poland: Warsaw, Norway: Oslo, Sweden: Stockholm, Finland: Helsinki,
Denmark: Copenhagen, Ireland: Dublin, England: London, Hungary: Budapest, Russia: Moscow,
Turkey: Ankara, Egypt: Cairo, Kenya: Nairobi, Japan: Tokyo, China: Beijing, India: Delhi,
Thailand: Bangkok, Canada: Ottawa, Cuba: Havana, Peru: Lima, Chile: Santiago, Iraq: Baghdad
""")

CONTINENTS = _pairs("""
France: Europe, Spain: Europe, Italy: Europe, Germany: Europe, Portugal: Europe, Greece: Europe,
Austria: Europe, Poland: Europe, Norway: Europe, Sweden: Europe, Finland: Europe, Denmark: Europe,
Ireland: Europe, England: Europe, Hungary: Europe, Egypt: Africa, Kenya: Africa, Ghana: Africa,
Mali: Africa, Japan: Asia, China: Asia, India: Asia, Thailand: Asia, Iraq: Asia, Nepal: Asia,
Canada: America, Cuba: America, Peru: America, Chile: America, Brazil: America
""")

_OPPOSITES = _pairs("""
big: small, hot: cold, day: night, up: down, left: right, fast: slow, old: young, happy: sad,
open: closed, wet: dry, full: empty, hard: soft, light: dark, loud: quiet, rich: poor, strong: weak,
high: low, long: short, thick: thin, clean: dirty, early: late, near: far, good: bad, true: false,
first: last, sweet: sour, wide: narrow, sharp: blunt, brave: fearful, kind: cruel
""")
OPPOSITES = _OPPOSITES + [(y, x) for x, y in _OPPOSITES]

PLURALS = _pairs("""
cat: cats, dog: dogs, house: houses, child: children, mouse: mice, goose: geese, foot: feet,
tooth: teeth, man: men, woman: women, leaf: leaves, knife: knives, wolf: wolves, city: cities,
baby: babies, berry: berries, box: boxes, fox: foxes, bus: buses, dish: dishes, tree: trees,
book: books, star: stars, boat: boats, ox: oxen, loaf: loaves, story: stories, lady: ladies,
wish: wishes, shelf: shelves
""")

PASTS = _pairs("""
go: went, eat: ate, see: saw, run: ran, sing: sang, swim: swam, take: took, give: gave, come: came,
write: wrote, drink: drank, fly: flew, find: found, make: made, buy: bought, think: thought,
walk: walked, play: played, sleep: slept, speak: spoke, break: broke, bring: brought, sit: sat,
know: knew
""")

MAKERS = _pairs("""
baker: bread, tailor: suits, cobbler: shoes, potter: pots, brewer: beer, painter: pictures,
writer: books, cook: soup, carpenter: tables, weaver: cloth, hatter: hats, jeweller: rings,
poet: poems, builder: houses, smith: swords, candlemaker: candles, dairyman: butter, composer: music
""")

WORKPLACES = _pairs("""
teacher: school, nurse: hospital, cook: kitchen, farmer: farm, sailor: ship, pilot: plane,
judge: court, baker: bakery, librarian: library, actor: theatre, monk: monastery, miner: mine,
clerk: office, waiter: restaurant, king: palace, gardener: garden, priest: church, banker: bank,
soldier: camp, scientist: laboratory
""")

KINDS = _pairs("""
apple: fruit, pear: fruit, plum: fruit, cherry: fruit, carrot: vegetable, onion: vegetable,
potato: vegetable, cabbage: vegetable, rose: flower, tulip: flower, daisy: flower, lily: flower,
oak: tree, pine: tree, birch: tree, willow: tree, hammer: tool, saw: tool, drill: tool,
spade: tool, eagle: bird, robin: bird, sparrow: bird, parrot: bird, trout: fish, salmon: fish,
shark: fish, tuna: fish, ant: insect, bee: insect, beetle: insect, moth: insect, violin: instrument,
drum: instrument, flute: instrument, piano: instrument, chair: furniture, sofa: furniture,
shirt: garment, coat: garment, scarf: garment, ruby: gem, diamond: gem, emerald: gem
""")

MATERIALS = _pairs("""
window: glass, table: wood, coin: metal, jumper: wool, tyre: rubber, brick: clay, candle: wax,
book: paper, saddle: leather, anchor: iron, crown: gold, spoon: silver, castle: stone, sail: canvas,
rope: hemp, snowman: snow, pillow: feathers, sandcastle: sand
""")

SENSES = _pairs("""
see: eyes, hear: ears, smell: nose, taste: tongue, chew: teeth, walk: feet, grab: hands,
breathe: lungs, think: brain, kneel: knees
""")

# (what is counted, owner) -> how many
COUNTS: list[tuple[str, str, str]] = [
    (unit, owner, number)
    for unit, table in {
        "legs": """a cat: four, a dog: four, a horse: four, a cow: four, a lion: four, a bird: two,
            a duck: two, a hen: two, a man: two, a spider: eight, an ant: six, a bee: six,
            a beetle: six, a snake: zero, a chair: four, a crab: ten""",
        "wheels": "a bicycle: two, a car: four, a tricycle: three, a unicycle: one",
        "sides": "a triangle: three, a square: four, a pentagon: five, a hexagon: six",
        "days": "a week: seven, a weekend: two",
        "months": "a year: twelve, a season: three",
        "fingers": "a hand: five",
        "arms": "an octopus: eight, a starfish: five",
        "strings": "a violin: four, a guitar: six",
        "players": "a football team: eleven, a chess game: two",
    }.items()
    for owner, number in _pairs(table)
]

# Smallest first; every pair of them can be compared.
SIZES = """ant bee mouse frog duck hen cat fox dog sheep pig lion cow horse camel elephant
whale""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = """January February March April May June July August September October November
December""".split()
NAMES = """Tom Anna Ben Lucy Max Mia Sam Ella Jack Nora Leo Rose Finn Ida Paul Clara Hugo Vera
Oscar Greta""".split()
