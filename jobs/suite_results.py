"""Suites of prompts in the queue and judgements of their answers: list, read, export.

A judge first sees the user's own votes, so that its agreement with them is known; votes are never
touched. Its verdicts become rows of a dataset only when asked, and only if it agrees often enough.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.compare_tables import Conversations, Votes
from jobs.database import Database
from jobs.dataset_from_votes import Said, VotedTurn
from jobs.job_queue import JobStore
from jobs.job_record import Job
from jobs.outcome_figures import figures
from studio.adapter_stack import read_lane
from studio.adapters.library import resolve
from studio.chat.lanes import LaneSettings, lane_notes
from studio.errors import AdapterError, ChatError, QueueError
from studio.evaluation.html_and_csv_exports import Form, suite_as
from studio.evaluation.judge import TIE, JudgeRequest, read_verdicts
from studio.evaluation.judge import summarise as summarise_verdicts
from studio.evaluation.suites import FIGURES, SuiteRequest, read_results, summarise
from studio.home import Home

KIND, JUDGE = "suite", "judge"
SHOWN = ("suite", "address", "model", "rubric")  # of a request to judge


def listing(store: JobStore) -> list[dict[str, Any]]:
    """Return the suites of prompts in the queue, the newest first."""
    return [
        {
            "id": job.id, "name": job.name, "state": job.state, "step": job.step,
            "total_steps": len(job.spec["cases"]), "created": job.created,
            "lanes": _lanes(job), "error": job.error_text,
        }
        for job in store.list() if job.kind == KIND
    ]  # fmt: skip


def table(store: JobStore, name: int | str) -> dict[str, Any]:
    """Return the results of a suite: its summary and its rows as far as they are answered.

    Raises:
        QueueError: There is no such suite.
    """
    job = _get(store, name)
    rows = read_results(store.home.run(job.id))
    return {
        "id": job.id, "name": job.name, "state": job.state, "total": len(job.spec["cases"]),
        "error": job.error_text, "spec": job.spec, **summarise(_lanes(job), rows), "rows": rows,
        "columns": [
            {"key": key, "title": title, "unit": unit, "hint": hint}
            for key, (title, unit, hint) in FIGURES.items()
        ],
    }  # fmt: skip


def outcome(store: JobStore, job: Job) -> dict[str, Any]:
    """Return the results of a suite's job as commands print them."""
    return {key: value for key, value in table(store, job.id).items() if key != "spec"}


def exported(store: JobStore, name: int | str, form: Form) -> str:
    """Return the results of a suite as a file's text.

    Raises:
        QueueError: There is no such suite.
    """
    found = table(store, name)
    return suite_as(form, found["name"], found, found["rows"], _curves(store, found["lanes"]))


def _curves(store: JobStore, lanes: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Return the loss curves of the runs whose adapters answer."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for run, label in _runs_of(store.home, lanes).items():
        if points := store.points(run, "loss", bins=200):
            curves[label] = points
    return curves


def _runs_of(home: Home, lanes: list[str]) -> dict[int, str]:
    """Return the runs that trained the lanes' adapters, as number: name; no path is a name."""
    found: dict[int, str] = {}
    for name in [part["name"] for lane in lanes for part in read_lane(lane)["stack"]]:
        run, at, _ = name.partition("@")
        if at and run.isdecimal():
            found[int(run)] = f"run {run}"
            continue
        with suppress(AdapterError):
            folder = resolve(home, name).parent
            if folder.parent == home.runs and folder.name.isdecimal():
                own = Path(name).name == name
                found[int(folder.name)] = name if own else f"run {folder.name}"
    return found


def _lanes(job: Job) -> list[str]:
    """Return the names of the lanes; settings follow where lanes differ in them."""
    lanes = SuiteRequest.parse(job.spec).lanes
    return [lane.name + note for lane, note in zip(lanes, lane_notes(lanes), strict=True)]


def _get(store: JobStore, name: int | str) -> Job:
    job = store.get(name)
    if job.kind != KIND:
        raise QueueError(f'"{job.name}" is a job of kind {job.kind}, not a suite.')
    return job


def judge_request(
    store: JobStore, suite: int | str, *, votes: int, **settings: Any
) -> JudgeRequest:
    """Return the request to judge a suite's answers, with the newest `votes` votes.

    Raises:
        StudioError: There is no such suite, or a setting is invalid.
    """
    found = table(store, suite)
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


def judgements(store: JobStore) -> list[dict[str, Any]]:
    """Return the judgements of suites, newest first, with what they found, without pairs."""
    found = [job for job in store.list() if job.kind == JUDGE]
    return [{key: value for key, value in judgement(store, job.id).items() if key != "rows"}
            for job in found]  # fmt: skip


def judgement(store: JobStore, name: int | str) -> dict[str, Any]:
    """Return what the judge of a suite has found so far, with every pair and its reasons.

    Raises:
        QueueError: There is no such judgement.
    """
    job = store.get(name)
    if job.kind != JUDGE:
        raise QueueError(f'"{job.name}" is a job of kind {job.kind}, not a judgement.')
    rows = read_verdicts(store.home.run(job.id))
    least = float(job.spec["min_agreement"])
    found = {
        "id": job.id, "name": job.name, "state": job.state, "created": job.created,
        "step": len(rows), "total_steps": job.total_steps, "error": job.error_text,
        **{key: job.spec[key] for key in SHOWN},
        "judge": LaneSettings.model_validate(job.spec["lane"]).name,
        **summarise_verdicts(rows, min_agreement=least),
        "rows": rows,
    }  # fmt: skip
    return found | {"figures": figures(JUDGE, found)}


def judged_turns(store: JobStore, name: int | str) -> list[VotedTurn]:
    """Return the verdicts of a suite's judge as voted turns, for a dataset.

    Raises:
        QueueError: There is no such judgement, or its verdicts do not count.
    """
    found = judgement(store, name)
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
