"""The bodies of the commands about the home: what uses space, clean-up, backup, restore."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from jobs import storage
from jobs.backup import backup as write_backup
from jobs.restore import restore as bring_back
from jobs.store import JobStore
from studio.home import Home
from studio.names import readable


def show_storage(home: Home, *, as_json: bool) -> None:
    """Print what uses space, and what the rules would let go."""
    with closing(JobStore(home)) as store:
        facts = storage.usage(store)
        spare = storage.report(storage.spare(store))
    if as_json:
        print(json.dumps(facts | {"spare": spare}, ensure_ascii=False))
        return
    for part in facts["parts"]:
        print(f"{readable(part['bytes']):>12}  {part['name']}")
    print(f"{readable(facts['free_bytes']):>12}  free on this disk")
    for run in facts["runs"]:
        print(f"{readable(run['bytes']):>12}  run {run['name']} ({run['state']})")
    print(f"`studio clean` would free {readable(spare['bytes'])}.")


def clean(
    home: Home, *, keep_checkpoints: int | None, keep_days: int | None, sure: bool, as_json: bool
) -> None:
    """Show what the rules let go, and with `sure` remove it."""
    with closing(JobStore(home)) as store:
        if keep_checkpoints is not None or keep_days is not None:
            rules = storage.rules(store)
            storage.set_rules(
                store,
                keep_checkpoints=rules["keep_checkpoints"]
                if keep_checkpoints is None else keep_checkpoints,
                keep_days=rules["keep_days"] if keep_days is None else keep_days,
            )  # fmt: skip
        found = storage.report(storage.clean(store) if sure else storage.spare(store))
    if as_json:
        print(json.dumps(found | {"removed": sure}, ensure_ascii=False))
        return
    for item in found["items"]:
        print(f"{readable(item['bytes']):>12}  {item['what']}: {item['why']}")
    if sure:
        print(f"{readable(found['bytes'])} are free again.")
    elif found["items"]:
        print(f"`studio clean --yes` frees {readable(found['bytes'])}.")
    else:
        print("There is nothing to clean up.")


def backup(home: Home, file: Path, *, as_json: bool) -> None:
    """Write the whole home into one file."""
    done = write_backup(home, file)
    sentence = (
        f"{done['file']} holds {done['files']} files, {readable(done['bytes'])}. "
        "Secrets and running processes are not in it."
    )
    _say(done, sentence, as_json)


def restore(home: Home, file: Path, *, as_json: bool) -> None:
    """Bring a backup, or a copy of the database, back into the home."""
    done = bring_back(home.path, file)
    kept = f" What was there before is {done['before']}." if done["before"] else ""
    _say(done, f"{done['home']} is restored.{kept} Open the studio to go on.", as_json)


def _say(values: dict[str, Any], sentence: str, as_json: bool) -> None:
    print(json.dumps(values, ensure_ascii=False) if as_json else sentence)
