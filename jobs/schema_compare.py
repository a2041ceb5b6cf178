"""The tables of Compare: conversations and their turns, saved mixes, and more about a vote.

Migrations call these statements once (`schema.py`); a released one is never edited.
"""

_CONVERSATIONS = """
CREATE TABLE conversations (
  id TEXT PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 64),
  title TEXT NOT NULL DEFAULT '',
  lanes TEXT NOT NULL CHECK (json_valid(lanes)),
  settings TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(settings)),
  parent TEXT,  -- the conversation this one was branched from; it may be deleted since
  created REAL NOT NULL,
  updated REAL NOT NULL
) STRICT, WITHOUT ROWID
"""

# `words` is what a search reads: the prompt and the answers as plain text.
_TURNS = """
CREATE TABLE turns (
  conversation TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
  number INTEGER NOT NULL CHECK (number >= 0),
  prompt TEXT NOT NULL,
  answers TEXT NOT NULL CHECK (json_valid(answers)),
  words TEXT NOT NULL,
  PRIMARY KEY (conversation, number)
) STRICT, WITHOUT ROWID
"""

_RECIPES = """
CREATE TABLE recipes (
  name TEXT PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 120),
  model TEXT NOT NULL,
  stack TEXT NOT NULL CHECK (json_valid(stack)),
  created REAL NOT NULL
) STRICT, WITHOUT ROWID
"""

# A vote outlives its conversation, so there is no foreign key.
_MATCH_COLUMNS = (
    "ALTER TABLE matches ADD COLUMN bad INTEGER NOT NULL DEFAULT 0 CHECK (bad IN (0, 1))",
    "ALTER TABLE matches ADD COLUMN blind INTEGER NOT NULL DEFAULT 0 CHECK (blind IN (0, 1))",
    "ALTER TABLE matches ADD COLUMN conversation TEXT",
    "ALTER TABLE matches ADD COLUMN turn INTEGER",
    "ALTER TABLE matches ADD COLUMN answers TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(answers))",
)
_ONE_VOTE_A_TURN = """
CREATE UNIQUE INDEX matches_one_a_turn ON matches(conversation, turn)
WHERE conversation IS NOT NULL
"""

COMPARE = (_CONVERSATIONS, _TURNS, _RECIPES, *_MATCH_COLUMNS, _ONE_VOTE_A_TURN)
