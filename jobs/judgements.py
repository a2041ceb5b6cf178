"""Judgements as jobs of the queue: ask a judge, read its verdicts; votes are never touched.

A judge first sees the user's own votes, so that its agreement with them is known. Its verdicts
become rows of a dataset only when asked, and only if it agrees often enough.
"""

from collections.abc import Iterator
from typing import Any

from jobs import suites
from jobs.job import Job
from jobs.store import JobStore
from jobs.vote_rows import Said, VotedTurn
from jobs.votes import Votes
from studio.chat.lanes import LaneSettings
from studio.errors import QueueError
from studio.evaluation.judge import TIE, JudgeRequest, read_verdicts, summarise

KIND = "judge"
SHOWN = ("suite", "address", "model", "rubric")


def request(store: JobStore, suite: int | str, *, votes: int, **settings: Any) -> JudgeRequest:
    """Return the request to judge a suite, with the user's newest `votes` votes.

    Raises:
        StudioError: There is no such suite, or a setting is invalid.
    """
    found = suites.table(store, suite)
    ballots = list(_ballots(Votes(store.database)))[-votes:] if votes else []
    values = {"suite": found["id"], "lanes": found["lanes"], "votes": ballots, **settings}
    values["name"] = values.get("name") or f"judge of {found['name']}"[:100]
    return JudgeRequest.parse(values)


def _ballots(votes: Votes) -> Iterator[dict[str, Any]]:
    """Yield the votes as pairs: the winner against each other answer; ties of two.

    Votes on later turns are left out: the judge would not see what was said before.
    """
    for vote in votes.list():
        answers, winner = vote["answers"], vote["winner"]
        if vote["turn"] or len(answers) != len(vote["lanes"]) or not all(answers):
            continue
        how = {"prompt": vote["prompt"]}
        if winner is None and len(answers) == 2:
            yield {**how, "answers": answers, "lanes": vote["lanes"], "vote": TIE}
        elif winner is not None:
            for other in set(range(len(answers))) - {winner}:
                places = sorted((winner, other))
                yield {
                    **how, "answers": [answers[p] for p in places],
                    "lanes": [vote["lanes"][p] for p in places], "vote": places.index(winner),
                }  # fmt: skip


def listing(store: JobStore) -> list[dict[str, Any]]:
    """Return the judgements, the newest first, with what they found and without their pairs."""
    found = [job for job in store.list() if job.kind == KIND]
    return [{key: value for key, value in table(store, job.id).items() if key != "rows"}
            for job in found]  # fmt: skip


def table(store: JobStore, name: int | str) -> dict[str, Any]:
    """Return what a judge found as far as it has judged, with every pair and its reasons.

    Raises:
        QueueError: There is no such judgement.
    """
    job = store.get(name)
    if job.kind != KIND:
        raise QueueError(f'"{job.name}" is a job of kind {job.kind}, not a judgement.')
    rows = read_verdicts(store.home.run(job.id))
    least = float(job.spec["min_agreement"])
    return {
        "id": job.id, "name": job.name, "state": job.state, "created": job.created,
        "step": len(rows), "total_steps": job.total_steps, "error": job.error_text,
        **{key: job.spec[key] for key in SHOWN},
        "judge": LaneSettings.model_validate(job.spec["lane"]).name,
        **summarise(rows, min_agreement=least),
        "rows": rows,
    }  # fmt: skip


def outcome(store: JobStore, job: Job) -> dict[str, Any]:
    """Return the table of a judgement as commands print it."""
    return table(store, job.id)


def turns(store: JobStore, name: int | str) -> list[VotedTurn]:
    """Return a judge's verdicts as turns of which rows of a dataset are made.

    Raises:
        QueueError: There is no such judgement, or its verdicts do not count.
    """
    found = table(store, name)
    if not found["evidence"]:
        raise QueueError(f'The verdicts of "{found["name"]}" cannot be used. {found["why"]}')
    return [
        VotedTurn(
            "", [
                Said(lane, [{"role": "user", "content": row["prompt"]}],
                     {"role": "assistant", "content": text.strip()}, None)
                for lane, text in zip(row["lanes"], row["answers"], strict=True)
            ],
            row["winner"], True,
        )
        for row in found["rows"] if row["vote"] == "" and row["winner"] is not None
    ]  # fmt: skip
