"""Which queued job a slot may start: when, where, on how many devices, in how much memory.

A job that names its devices (`cuda:0,cuda:2`) starts when these are free, one that wants `all` when
every slot of the kind is, any other on as many as it is wide. Statements here take what `asked`
returns and say nothing of who starts it.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jobs.database import now

UNBOUNDED = 2**62


def conditions(wanted: Iterable[str] | None, moods: Iterable[str]) -> dict[str, Any]:
    """Return what `MAY_START` asks for."""
    return {
        "now": now(), "any": wanted is None, "wanted": json.dumps(list(wanted or ())),
        "moods": json.dumps(["", *moods]),
    }  # fmt: skip


def asked(
    device: str,
    more: Iterable[str],
    room: Mapping[str, int] | None,
    wanted: Iterable[str] | None,
    moods: Iterable[str],
) -> dict[str, Any]:
    """Return what `FREE` and `FIRST` ask for; the arguments are those of `Claims.claim`."""
    known = room or {}
    slots = [[one, known.get(one, UNBOUNDED)] for one in (device, *more)]
    return conditions(wanted, moods) | {"device": device, "devices": json.dumps(slots)}


MAY_START = """
  state = 'queued'
  AND (:any AND device_wanted <> 'ray' OR device_wanted IN (SELECT value FROM json_each(:wanted))
       OR instr(device_wanted, ',')  -- a set, of which this slot is one
          AND EXISTS (SELECT 1 FROM json_each(:wanted) AS mine
                      WHERE instr(',' || device_wanted || ',', ',' || mine.value || ',')))
  AND (start_after IS NULL OR start_after <= :now)
  AND start_when IN (SELECT value FROM json_each(:moods))
  AND NOT EXISTS (SELECT 1 FROM dependencies JOIN jobs AS needed ON needed.id = dependencies.needs
                  WHERE dependencies.job = jobs.id AND needed.state <> 'succeeded')
  AND (kind <> 'bakeoff'  -- which measures what its runs left, wherever these are trained
       OR NOT EXISTS (SELECT 1 FROM jobs AS run WHERE run.sweep = jobs.sweep AND run.kind = 'train'
                      AND run.state IN ('queued', 'starting', 'running', 'stopping',
                                        'interrupted')))
"""
SERVES = """(room >= memory_bytes AND (:device = 'cpu' OR NOT instr(device_wanted, ',')
  OR instr(',' || device_wanted || ',', ',' || free.name || ',')))"""
TAKES = "CASE device_wanted WHEN 'all' THEN json_array_length(:devices) ELSE width END"
FREE = """
WITH free AS (SELECT json_extract(value, '$[0]') AS name, json_extract(value, '$[1]') AS room,
                     key AS place
              FROM json_each(:devices)
              WHERE json_extract(value, '$[0]')  -- `cpu#12` is a seat on `cpu` (seats.py)
                    NOT IN (SELECT substr(device, 1, instr(device || '#', '#') - 1)
                            FROM leases WHERE holder = 'job'))
"""
FIRST = f"""
FROM jobs WHERE {MAY_START}
  AND :device IN (SELECT name FROM free)
  AND memory_bytes <= (SELECT room FROM free WHERE name = :device)
  AND (:device = 'cpu' OR {TAKES} <= (SELECT count(*) FROM free WHERE {SERVES}))
ORDER BY position, id LIMIT 1
"""
