"""Many runs from one: a grid or a random sample over any fields of the spec. Pure: no queue."""

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from studio.errors import QueueError
from studio.spec import RunSpec

MOST_POINTS = 1000


def points(
    fields: Mapping[str, Sequence[Any]],
    *,
    mode: Literal["grid", "random"] = "grid",
    count: int = 0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the assignments of each run, every one different.

    Args:
        fields: The values to try, by dotted field.
        mode: `grid` takes all combinations, `random` draws `count` of them.
        count: How many for `random`.
        seed: Same seed, same draw.

    Raises:
        QueueError: A field has no values or one twice, or there are too many points.
    """
    empty = [field for field, values in fields.items() if not values]
    if not fields or empty:
        raise QueueError(f"A sweep needs values to try{' for ' + empty[0] if empty else ''}.")
    total = math.prod(len(values) for values in fields.values())
    wanted = total if mode == "grid" else count
    if mode == "random" and count < 1:
        raise QueueError(f"A random sweep needs a count of 1 or more, not {count}.")
    if min(wanted, total) > MOST_POINTS:
        raise QueueError(
            f"This sweep has {wanted:,} points; {MOST_POINTS:,} is the most. "
            "Try fewer values, or draw some at random."
        )
    for field, values in fields.items():
        written = Counter(json.dumps(value, sort_keys=True, default=str) for value in values)
        value, times = written.most_common(1)[0]
        if times > 1:
            raise QueueError(f"{field} names {value} twice. Each value is tried once.")
    names, lists = list(fields), list(fields.values())
    if mode == "grid" or wanted >= total:
        chosen = list(itertools.product(*lists))
    else:
        numbers = random.Random(seed).sample(range(total), wanted)
        chosen = [_combination(lists, number) for number in sorted(numbers)]
    return [dict(zip(names, values, strict=True)) for values in chosen]


def expand(spec: RunSpec, assignments: Sequence[Mapping[str, Any]], *, name: str) -> list[RunSpec]:
    """Return one spec a point, named after what differs.

    Raises:
        SpecError: A field does not exist or a value is out of bounds; nothing is returned.
    """
    return [
        spec.with_values({**point, "name": f"{name} {_label(point)}"[:120]})
        for point in assignments
    ]


def _combination(lists: Sequence[Sequence[Any]], number: int) -> tuple[Any, ...]:
    picked = []
    for values in reversed(lists):
        number, index = divmod(number, len(values))
        picked.append(values[index])
    return tuple(reversed(picked))


def _label(point: Mapping[str, Any]) -> str:
    return " ".join(f"{field.rpartition('.')[2]}={value}" for field, value in point.items())
