"""The bodies of the commands of Compare: what they print, and their exit codes."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from jobs import suites
from jobs.conversations import Conversations, Votes
from jobs.recipes import Recipes
from jobs.store import JobStore
from studio.errors import ChatError
from studio.evaluation.reports import form_of, title, votes_as
from studio.evaluation.suites import read_cases
from studio.home import Home
from studio.stack import MAX_LANES, StackItem, read_lane
from ui.cli.follow import follow_to_the_end
from ui.cli.runs_commands import say_state

LETTERS = ascii_uppercase[:MAX_LANES]


def compare(
    home: Home, lanes: Sequence[str], prompt: str, *, recipes: Sequence[str], system: str,
    sampling: dict[str, Any], device: str, as_json: bool,
) -> int:  # fmt: skip
    """Answer one prompt with every lane, in this process."""
    from studio.chat.lanes import ChatRequest, events_of
    from studio.chat.residents import ResidentModels

    asked = [read_lane(lane) for lane in lanes]
    if recipes:
        with closing(JobStore(home)) as store:
            known = [Recipes(store.database).get(name) for name in recipes]
        asked += [{"model": one["model"], "stack": one["stack"]} for one in known]
    asked = asked or [read_lane("starter")]
    question = [{"role": "user", "content": prompt}]
    values = [
        {**lane, "system": system, "sampling": sampling, "messages": question} for lane in asked
    ]
    request = ChatRequest.parse({"lanes": values})
    answers: list[dict[str, Any]] = [{"text": "", "notes": [], "logprobs": []} for _ in asked]
    for delta in ResidentModels(home, device=device).stream(request.lanes):
        for event in events_of(delta):
            _take(answers[delta.lane], event)
    if as_json:
        print(json.dumps({"lanes": answers}, ensure_ascii=False))
    else:
        _print_answers(answers, asked)
    return 2 if all("error" in answer for answer in answers) else 0


def _take(answer: dict[str, Any], event: dict[str, Any]) -> None:
    kind = event["type"]
    if kind == "delta":
        answer["text"] += event["text"]
        answer["logprobs"] += event.get("tokens", [])
    elif kind == "status":
        answer["notes"].append(event["text"])
    elif kind == "error":
        answer["error"] = {"kind": event["kind"], "text": event["text"]}
    else:
        answer.update({key: event[key] for key in event if key not in ("type", "lane")})


def _print_answers(answers: Sequence[dict[str, Any]], asked: Sequence[dict[str, Any]]) -> None:
    for place, (answer, lane) in enumerate(zip(answers, asked, strict=True)):
        parts = [str(StackItem(**part)) for part in lane["stack"]]
        print(f"{LETTERS[place]}  {' + '.join([lane['model'], *parts])}")
        print(f"   {answer.get('error', {}).get('text') or answer['text']}")
        if "tokens" in answer:
            print(f"   {answer['tokens']} tokens, {answer['tokens_per_second']} tokens/s")


def suite(
    home: Home, file: Path | None, lanes: Sequence[str], *, name: str, show: str,
    sampling: dict[str, Any], out: Path | None, follow: bool, as_json: bool,
) -> int:  # fmt: skip
    """Run a suite, show one, or list them."""
    with closing(JobStore(home)) as store:
        if file is None and not show:
            _list_suites(suites.listing(store), as_json)
            return 0
        if file is not None:
            values = {
                "name": name, "cases": read_cases(file),
                "lanes": [read_lane(one) | {"sampling": sampling} for one in lanes or ["starter"]],
            }  # fmt: skip
            job = suites.submit(store, values)
            if not follow:
                return say_state(job, as_json)
            job = follow_to_the_end(store, job)
            if job.state != "succeeded":
                return say_state(job, as_json)
            show = str(job.id)
        found = suites.table(store, show)
        if out:
            _write(out, suites.exported(store, show, form_of(out.name)))
    if as_json:
        print(json.dumps({k: v for k, v in found.items() if k != "spec"}, ensure_ascii=False))
    else:
        _print_means(found)
    return 0


def leaderboard(home: Home, *, blind: bool, out: Path | None, as_json: bool) -> None:
    """Print the ranking, or write votes and ranking to a file."""
    with closing(JobStore(home)) as store:
        votes = Votes(store.database)
        board = votes.board(blind_only=blind)
        if out:
            _write(out, votes_as(form_of(out.name), votes.list(), board))
    if as_json:
        print(json.dumps(board, ensure_ascii=False))
        return
    if not board["standings"]:
        print("No votes yet: ask two lanes on the Compare page, and say which is better.")
    for place, one in enumerate(board["standings"], 1):
        record = f"{one['wins']} won, {one['losses']} lost, {one['ties']} tied"
        interval = f"{one['low']:.0f} to {one['high']:.0f}"
        print(f"{place:>3}  {one['score']:6.0f}  ({interval})  {title(one['lane'])}  {record}")


def vote(home: Home, conversation: str, turn: int, verdict: str, *, as_json: bool) -> None:
    """Cast or take back a vote on a kept turn."""
    with closing(JobStore(home)) as store:
        talks, votes = Conversations(store.database), Votes(store.database)
        turns = talks.get(conversation)["turns"]
        if turn > len(turns):
            raise ChatError(f"The conversation has {len(turns)} turns: there is no turn {turn}.")
        asked = turns[turn - 1]
        answers = asked["answers"]
        word, letters = verdict.strip().lower(), LETTERS[: len(answers)]
        if word == "none":
            votes.take_back(conversation, turn - 1)
            marks: list[str | None] = [None] * len(answers)
        elif word in ("tie", "bad") or (len(word) == 1 and word.upper() in letters):
            winner = letters.index(word.upper()) if len(word) == 1 else None
            votes.cast(
                asked["prompt"], [str(a.get("lane", "")) for a in answers], winner=winner,
                bad=word == "bad", conversation=conversation, turn=turn - 1,
                answers=[str(a.get("text", "")) for a in answers],
            )  # fmt: skip
            marks = [
                word if winner is None else "won" if i == winner else "lost"
                for i in range(len(answers))
            ]
        else:
            raise ChatError(f'"{verdict}" is no verdict: write {", ".join(letters)}, tie or bad.')
        marked = [
            {k: v for k, v in a.items() if k != "verdict"} | ({"verdict": m} if m else {})
            for a, m in zip(answers, marks, strict=True)
        ]
        talks.save_turn(conversation, turn - 1, prompt=asked["prompt"], answers=marked)
    said = {"conversation": conversation, "turn": turn, "verdict": word}
    print(json.dumps(said) if as_json else f"Turn {turn}: {word}.")


def conversations(home: Home, *, search: str, show: str, delete: str, as_json: bool) -> None:
    """List, print or forget conversations."""
    with closing(JobStore(home)) as store:
        talks = Conversations(store.database)
        if delete:
            talks.delete(delete)
            print(json.dumps({"deleted": delete}) if as_json else f"Deleted {delete}.")
            return
        found = talks.get(show) if show else talks.list(search=search)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    elif isinstance(found, dict):
        for turn in found["turns"]:
            print(f"> {turn['prompt']}")
            for letter, answer in zip(LETTERS, turn["answers"], strict=False):
                print(f"{letter}  {answer.get('text', '')}")
    else:
        for row in found:
            print(f"{row['id']}  {row['turns']:>3} turns  {row['title']}")


def recipes(home: Home, *, save: str, lane: str, delete: str, as_json: bool) -> None:
    """List, keep or forget mixes."""
    with closing(JobStore(home)) as store:
        kept = Recipes(store.database)
        if save:
            mix = read_lane(lane)
            kept.save(save, mix["model"], mix["stack"])
        if delete:
            kept.delete(delete)
        found = kept.list()
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for row in found:
        parts = " + ".join(str(StackItem(**part)) for part in row["stack"])
        print(f"{row['name']}: {row['model']} + {parts}")


def _list_suites(found: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for row in found:
        lanes = " · ".join(map(title, row["lanes"]))
        print(
            f"{row['id']:>4}  {row['name']}  {row['state']}  {row['total_steps']} prompts  {lanes}"
        )


def _print_means(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    keys = [key for key in found["means"][0] if key != "lane"]
    table = Table("Lane", *(key.replace("_", " ") for key in keys), box=None)
    for one in found["means"]:
        table.add_row(title(one["lane"]), *("–" if one[k] is None else f"{one[k]:g}" for k in keys))
    Console(highlight=False).print(table)


def _write(out: Path, text: str) -> None:
    try:
        out.expanduser().write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise ChatError(f"{out} cannot be written ({error.strerror}).") from None
