"""Rows of a dataset from what was said on Compare: pairs, answers to learn from, judged answers.

The winner of a vote is chosen and the others are rejected; ties teach nothing. An answer that the
user edited is better than what it was. Two answers make a pair only if the same was said before
them; after turns that the lanes answered differently they do not, and are counted instead.
"""

import datetime
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jobs.compare_tables import Conversations, Votes, as_message, settings_of
from jobs.database import Database
from studio.adapter_stack import StackItem, lane_note, read_lane, write_lane
from studio.chat.thought_and_tool_parser import spoken
from studio.errors import ChatError

Kind = Literal["pairs", "answers", "judged"]
Row = dict[str, Any]
Messages = list[dict[str, Any]]
LEFT_OUT = {
    "tie": "ties",
    "history": "pairs whose lanes had answered earlier turns differently",
    "same": "pairs of equal answers",
    "empty": "empty answers",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnFilter:
    """The votes and conversations to use; empty fields take all."""

    lane: str = ""
    search: str = ""
    since: str = ""
    until: str = ""
    blind: bool = False
    unvoted: bool = False


class Said(NamedTuple):
    """One answer of a turn: its lane, what stood before it, its text, and what it was unedited."""

    lane: str
    before: Messages
    answer: Row
    original: Row | None


class VotedTurn(NamedTuple):
    """The answers of one turn and their verdict: the winner's place, "tie", "bad" or None."""

    conversation: str
    answers: list[Said]
    verdict: int | str | None
    is_last: bool


def rows_of(
    database: Database, kind: Kind, wanted: TurnFilter, turns: Sequence[VotedTurn] | None = None
) -> tuple[list[Row], Counter[str]]:
    """Return dataset rows of a kind, made from votes, and what was left out for which reason.

    Args:
        wanted: Which votes and conversations; of given turns only the lane counts.
        turns: Turns to use instead, such as a judge's verdicts.

    Raises:
        ChatError: A date or a lane is not one, or there is not one row.
    """
    left_out: Counter[str] = Counter()
    turns = [*_turns(database, wanted)] if turns is None else turns
    lane = _plain_lane(wanted.lane) if wanted.lane else ""
    rows = []
    for turn in turns:
        if kind == "pairs":
            made = _pairs(turn, left_out)
        elif kind == "judged":
            made = _judged(turn, left_out)
        else:
            made = _answers(turn, wanted.unvoted, left_out)
        rows += [row for row in made if not lane or _plain_lane(row["lane"]) == lane]
    if rows:
        return rows, left_out
    why = "; ".join(f"{count:,} {LEFT_OUT[name]}" for name, count in left_out.items())
    raise ChatError(
        f"None of the {len(turns):,} turns gives a row" + (f": {why} are left out" if why else "")
        + ". Vote for the better answer of a few prompts, or widen the filter."
    )  # fmt: skip


def _turns(database: Database, wanted: TurnFilter) -> Iterator[VotedTurn]:
    """Yield the turns that a filter lets pass: of conversations, then votes on deleted ones."""
    start, end = _time(wanted.since), _time(wanted.until, days=1)
    votes = {(vote["conversation"], vote["turn"]): vote for vote in Votes(database).list()}
    talks = Conversations(database)
    for listed in talks.list(search=wanted.search, limit=-1):
        talk = talks.get(listed["id"])
        for number in range(len(talk["turns"])):
            vote = votes.pop((talk["id"], number), None)
            time = vote["created"] if vote else talk["updated"]
            if start <= time < end and not (wanted.blind and not (vote and vote["blind"])):
                answers = [*_said(talk, number, vote)]
                alone = any(one.get("alone") for one in talk["turns"][number]["answers"])
                last = alone or number + 1 == len(talk["turns"])
                verdict = _verdict(vote, talk["turns"][number]["answers"])
                yield VotedTurn(talk["id"], answers, verdict, last)
    kept = {talk["id"] for talk in talks.list(limit=-1)} if votes else set()
    for vote in votes.values():
        if vote["conversation"] in kept:
            continue  # the search left it out
        found = wanted.search.lower() in "\n".join([vote["prompt"], *vote["answers"]]).lower()
        if found and start <= vote["created"] < end and not (wanted.blind and not vote["blind"]):
            asked = [{"role": "user", "content": vote["prompt"]}]
            answers = [
                Said(lane, asked, {"role": "assistant", "content": text}, None)
                for lane, text in zip(vote["lanes"], vote["answers"], strict=False)
            ]
            yield VotedTurn("", answers, _verdict(vote), True)


def _said(talk: dict[str, Any], number: int, vote: Row | None) -> Iterator[Said]:
    turns = talk["turns"]
    voted = vote["lanes"] if vote else ()
    if len(voted) != len(turns[number]["answers"]):
        voted = ()  # a lane was removed since: places are others now
    for lane, answer in enumerate(turns[number]["answers"]):
        own = talk["lanes"][lane] if lane < len(talk["lanes"]) else {}
        system = settings_of(talk, own, answer).get("system") or ""
        before: Messages = [{"role": "system", "content": system}]
        for turn in () if answer.get("alone") else turns[:number]:
            earlier = turn["answers"][lane] if lane < len(turn["answers"]) else {}
            if earlier and earlier.get("text"):
                before += [{"role": "user", "content": turn["prompt"]}, as_message(earlier)]
        before.append({"role": "user", "content": turns[number]["prompt"]})
        name = voted[lane] if voted else answer.get("lane") or own.get("model", "")
        original = {"role": "assistant", "content": answer.get("original", "")}
        said = [one for one in before if spoken(one)]
        yield Said(name, said, as_message(answer), original if original["content"] else None)


def _verdict(vote: Row | None, answers: Sequence[Row] = ()) -> int | str | None:
    if vote is None:
        return None
    if vote["winner"] is None:
        return "bad" if vote["bad"] else "tie"
    if not answers or len(answers) == len(vote["lanes"]):
        return int(vote["winner"])
    # A lane was removed since: the mark moved with its answer.
    return next((at for at, one in enumerate(answers) if one.get("verdict") == "won"), None)


def _couples(turn: VotedTurn, left_out: Counter[str]) -> Iterator[tuple[Said, Row, Row, str]]:
    """Yield better and worse answers: edited ones over what they were, winners over the others."""
    for one in turn.answers:
        if one.original:
            yield one, one.answer, one.original, one.lane
    if turn.verdict in ("tie", "bad"):
        left_out["tie"] += 1
    if isinstance(turn.verdict, int) and turn.verdict < len(turn.answers):
        won = turn.answers[turn.verdict]
        for other in turn.answers:
            if other is not won:
                if other.before == won.before:
                    yield won, won.answer, other.original or other.answer, other.lane
                else:
                    left_out["history"] += 1


def _pairs(turn: VotedTurn, left_out: Counter[str]) -> Iterator[Row]:
    for won, chosen, rejected, other in _couples(turn, left_out):
        if not (spoken(chosen) and spoken(rejected)):
            left_out["empty"] += 1
        elif spoken(chosen) == spoken(rejected):
            left_out["same"] += 1
        else:
            yield {
                "prompt": won.before, "chosen": [chosen], "rejected": [rejected], "lane": won.lane,
                "rejected_lane": other, "conversation": turn.conversation,
            }  # fmt: skip


def _answers(turn: VotedTurn, unvoted: bool, left_out: Counter[str]) -> Iterator[Row]:
    """Yield the best answers, earlier ones muted; without votes each conversation as it ended."""
    for place, one in enumerate(turn.answers):
        if not spoken(one.answer):
            left_out["empty"] += 1
        elif unvoted and turn.is_last:
            yield _row(turn, one, [*one.before, one.answer])
        elif not unvoted and (place == turn.verdict or one.original):
            muted = [m | ({"weight": 0} if m["role"] == "assistant" else {}) for m in one.before]
            yield _row(turn, one, [*muted, one.answer])


def _judged(turn: VotedTurn, left_out: Counter[str]) -> Iterator[Row]:
    if turn.verdict == "tie":
        left_out["tie"] += 1
    for place, one in enumerate(turn.answers):
        verdicts = [(one.original, False), (one.answer, True)] if one.original else []
        if not verdicts and turn.verdict not in (None, "tie"):
            verdicts = [(one.answer, place == turn.verdict)]
        for answer, good in verdicts:
            if answer and spoken(answer):
                yield _row(turn, one, [*one.before, answer]) | {"label": good}


def _row(turn: VotedTurn, one: Said, messages: Messages) -> Row:
    return {"messages": messages, "lane": one.lane, "conversation": turn.conversation}


def _plain_lane(text: str) -> str:
    lane = read_lane(text)
    stack = [StackItem(**item) for item in lane["stack"]]
    return write_lane(lane["model"], stack) + lane_note(text)


def _time(day: str, *, days: int = 0) -> float:
    """Return the start of a day (the end with `days`), in seconds since 1970."""
    if not day.strip():
        return float("inf") if days else 0.0
    try:
        found = datetime.datetime.fromisoformat(day.strip())
    except ValueError:
        raise ChatError(f'"{day}" is not a day: write it as 2026-01-31.') from None
    return (found + datetime.timedelta(days=days if len(day.strip()) <= 10 else 0)).timestamp()
