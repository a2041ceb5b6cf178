"""Judgements: ask a judge about a suite as a job, read its verdicts; votes are never touched.

A judge first sees the user's own votes, so that its agreement with them is known. Its verdicts
become rows of a dataset only when asked, and only if it agrees often enough.
"""

from typing import Any

from jobs import suite_results
from jobs.compare_tables import Conversations, Votes
from jobs.database import Database
from jobs.dataset_from_votes import Said, VotedTurn
from jobs.job_queue import JobStore
from jobs.outcome_figures import figures
from studio.chat.lanes import LaneSettings
from studio.errors import ChatError, QueueError
from studio.evaluation.judge import TIE, JudgeRequest, read_verdicts, summarise

KIND = "judge"
SHOWN = ("suite", "address", "model", "rubric")


def request(store: JobStore, suite: int | str, *, votes: int, **settings: Any) -> JudgeRequest:
    """Return the request to judge a suite, with the user's newest `votes` votes.

    Raises:
        StudioError: There is no such suite, or a setting is invalid.
    """
    found = suite_results.table(store, suite)
    recent = _ballots(store.database)[-votes:] if votes else []
    ballots = [pair for own in recent for pair in own]
    values = {"suite": found["id"], "lanes": found["lanes"], "votes": ballots, **settings}
    values["name"] = values.get("name") or f"judge of {found['name']}"[:100]
    return JudgeRequest.parse(values)


def _ballots(database: Database) -> list[list[dict[str, Any]]]:
    """Return the pairs of each vote: the winner against each other answer; ties of two.

    Votes on later turns are left out unless each prompt stood alone: the judge would not see what
    was said before.
    """
    talks, found = Conversations(database), []
    for vote in Votes(database).list():
        answers, winner = vote["answers"], vote["winner"]
        count = len(answers)
        if count != len(vote["lanes"]) or not all(answers) or not _stands_alone(talks, vote):
            continue
        how = {"prompt": vote["prompt"], "vote_id": vote["id"]}
        if winner is None and count == 2:
            found.append([{**how, "answers": answers, "lanes": vote["lanes"], "vote": TIE}])
        elif winner is not None:
            couples = [sorted((winner, other)) for other in range(count) if other != winner]
            found.append([
                {**how, "answers": [answers[p] for p in places],
                 "lanes": [vote["lanes"][p] for p in places], "vote": places.index(winner)}
                for places in couples
            ])  # fmt: skip
    return found


def _stands_alone(talks: Conversations, vote: dict[str, Any]) -> bool:
    """Return True if the lanes answered without the turns before, as far as these are saved."""
    if not vote["turn"]:
        return True
    try:
        turns = talks.get(vote["conversation"])["turns"]
    except ChatError:
        return False
    answers = turns[vote["turn"]]["answers"] if vote["turn"] < len(turns) else []
    return bool(answers) and all((one or {}).get("alone") for one in answers)


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
    found = {
        "id": job.id, "name": job.name, "state": job.state, "created": job.created,
        "step": len(rows), "total_steps": job.total_steps, "error": job.error_text,
        **{key: job.spec[key] for key in SHOWN},
        "judge": LaneSettings.model_validate(job.spec["lane"]).name,
        **summarise(rows, min_agreement=least),
        "rows": rows,
    }  # fmt: skip
    return found | {"figures": figures(KIND, found)}


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
                Said(lane, [*row.get("before", ()), {"role": "user", "content": row["prompt"]}],
                     {"role": "assistant", "content": text.strip()}, None)
                for lane, text in zip(row["lanes"], row["answers"], strict=True)
            ],
            row["winner"], True,
        )
        for row in found["rows"] if row["vote"] == "" and row["winner"] is not None
    ]  # fmt: skip
