"""What commands about the home print: the doctor, storage, backups, the webhook."""

import shlex
from collections.abc import Mapping
from typing import Any

from jobs.ray_cluster import sentence as cluster
from studio.names import readable
from ui.language import say


def diagnosis(facts: Mapping[str, Any]) -> None:
    """Print what `studio doctor` found."""
    print(f"Python {facts['python']} on {facts['system']}, SQLite {facts['sqlite']}")
    print(", ".join(f"{name} {v}" for name, v in facts["packages"].items() if v))
    for device in facts["devices"]:
        free, total = readable(device["free_bytes"]), readable(device["total_bytes"])
        print(f"{device['name']}: {device['label']}, {free} of {total} free")
    if facts["allocator"]:
        print(f"Memory allocator of runs: {facts['allocator']}")
    if home := facts["home"]:
        print(f"Home {home['path']}, {readable(home['free_bytes'])} free")
        print("Runs: " + (", ".join(f"{n} {s}" for s, n in home["jobs"].items()) or "none"))
        if home["cluster"] and not home["cluster"]["trouble"]:
            print(cluster(home["cluster"]))
        for row in home["processes"]:
            print(f"Process {row['pid']}: {row['role']} {row['url']}".rstrip())
    if model := facts.get("model"):
        print(f"Model {model['path']}: {', '.join(model['works']) or 'nothing'} work")
        for name, why in model["fails"].items():
            print(f"  {name}: {why}")
    for finding in facts["findings"]:
        print(f"{finding['kind'].capitalize()}: {say(finding['text'])}")
    print("No problems found." if facts["ok"] else "Problems found (see above).")


def webhook(answer: Mapping[str, Any]) -> None:
    """Print where the home's webhook posts to."""
    places = {"keyring": "in the system's keyring", "file": "in a file that only you can read"}
    if not answer["kept"]:
        print("No webhook is set.")
        return
    print(
        f"Job notifications go to {answer['webhook']}; the address is stored "
        f"{places[answer['kept']]}."
    )


def storage(facts: Mapping[str, Any]) -> None:
    """Print what uses space in the home, and what the rules allow to remove."""
    for part in facts["parts"]:
        print(f"{readable(part['bytes']):>12}  {part['name']}")
    print(f"{readable(facts['free_bytes']):>12}  free on this disk")
    for one in facts["runs"]:
        print(f"{readable(one['bytes']):>12}  run {one['name']} ({one['state']})")
    print(f"`studio clean` would free {readable(facts['spare']['bytes'])}.")


def cleaned(found: Mapping[str, Any]) -> None:
    """Print what was or would be removed from the home."""
    for item in found["items"]:
        print(f"{readable(item['bytes']):>12}  {item['what']}: {item['why']}")
    if found["removed"]:
        print(f"Freed {readable(found['bytes'])}.")
    elif found["items"]:
        print(f"With --yes, this frees {readable(found['bytes'])}.")
    else:
        print("There is nothing to clean up.")


def backed_up(done: Mapping[str, Any]) -> None:
    """Print what a backup of the home holds."""
    print(
        f"{done['file']} holds {done['files']} files, {readable(done['bytes'])}. "
        "Secrets and running processes are not included."
    )


def restored(done: Mapping[str, Any]) -> None:
    """Print where a backup of the home was restored."""
    before = f" The previous home is now {done['before']}." if done["before"] else ""
    print(f"{done['home']} is restored.{before} Open the studio to continue.")


def welcome(answer: Mapping[str, Any]) -> None:
    """Print a home's welcome: the machine in one line, findings, and three ways to begin."""
    device = answer["device"]
    free, total = readable(device["free_bytes"]), readable(device["total_bytes"])
    disk = f", {readable(answer['disk_bytes'])} disk free" if answer["disk_bytes"] else ""
    print(f"{device['name']}: {device['label']}, {free} of {total} memory free{disk}")
    for finding in answer["findings"]:
        print(f"{finding['kind'].capitalize()}: {say(finding['text'])}")
    print("Try it:         studio train --data starter:pirate")
    print("With my data:   studio guide --goal voice --data FILE")
    print("With my model:  studio models --fits")


def guide(answer: Mapping[str, Any]) -> None:
    """Print a home's guide: data a goal needs, the settings with their reasons, the command."""
    chosen = answer["goal"]
    least, usual, most = chosen["rows"]
    print(chosen["needs"])
    print(f"Rows: {least:,} at least, usually {usual:,}; more than {most:,} rarely help.")
    print(f"Columns: {', '.join(chosen['columns'])}. A file to fill in: studio guide template "
          f"--goal {chosen['name']} --out rows.xlsx")  # fmt: skip
    if answer["data"]["text"]:
        print(f"Data: {answer['data']['text']}")
    for one in answer["models"]:
        words = "" if one["here"] else ", to download"
        print(f"Model: {one['name']}{words}{' (suggested)' if one['suggested'] else ''}")
    for one in answer["settings"]:
        print(f"{one['title']}: {one['shown']}. {one['reason']}")
    print("studio train " + " ".join(f"--set {shlex.quote(one)}" for one in answer["set"]))


def template(answer: Mapping[str, Any]) -> None:
    """Print where the template file of a home's guide is."""
    print(answer.get("file") or f"Give --out FILE to write {answer['name']}.")
