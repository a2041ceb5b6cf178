"""Actions of chat and Compare: suites, votes and their ranking, conversations, recipes, the API."""

from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any

from pydantic import BeforeValidator

from jobs import suite_results
from jobs.actions.registry import Reply, action, check_writable, field, submit, write_file
from jobs.compare_tables import Conversations, Recipes, Votes, answered_lanes, as_message, gone_on
from jobs.job_queue import JobStore
from studio.adapter_stack import MAX_LANES, read_lane
from studio.chat.lanes import LaneSettings, Sampling
from studio.chat.thought_and_tool_parser import spoken
from studio.errors import ChatError
from studio.evaluation.html_and_csv_exports import form_of, votes_as
from studio.evaluation.judge import MAX_VOTES, RUBRIC
from studio.evaluation.suites import Cases, SuiteRequest, parse_cases, read_cases
from studio.home import Home

LETTERS = ascii_uppercase[:MAX_LANES]
DEFAULTS = Sampling()
NONE: Any = ()
LANE: dict[str, Any] = {"metavar": "MODEL[~ADAPTER:WEIGHT+…]", "of": "lane"}


def _read_lanes(value: Any) -> Any:
    """Accept lanes as they stand in a page's address among the records."""
    if isinstance(value, list | tuple):
        return tuple(read_lane(one) if isinstance(one, str) else one for one in value)
    return value


Lanes = Annotated[
    tuple[LaneSettings, ...],
    BeforeValidator(_read_lanes),
    field("Lane, as in starter~pirate:1; RUN@STEP is a checkpoint; repeat for several.", **LANE),
]
MaxNewTokens = Annotated[int, field("Maximum length of an answer in tokens.", ge=1)]
Out = Annotated[str, field("Write a .csv, .jsonl or .html file.", flag="--out")]


@action("suite", title="Prompt suite", follow=True)
def suite(
    store: JobStore,
    file: Annotated[
        str,
        field(
            "Prompts: one a line, or a table (csv, xlsx, jsonl, parquet …) with prompts and "
            "expected answers.",
            positional=True,
            metavar="[FILE]",
        ),
    ] = "",
    lane: Lanes = NONE,
    name: Annotated[str, field("Name of the suite.", max_length=120)] = "",
    show: Annotated[str, field("Show this suite again.", metavar="ID", of="suite")] = "",
    max_new_tokens: MaxNewTokens = DEFAULTS.max_new_tokens,
    out: Out = "",
    check: Annotated[bool, field("Print the prompts of the file, and run nothing.")] = False,
    cases: Annotated[
        str, field("Prompts: one a line, or JSON lines.", flag="-", max_length=4_000_000, lines=6)
    ] = "",
) -> Any:
    """Run a prompt suite against several lanes and print its table; list the suites without one."""
    if show:
        if out:
            write_file(out, suite_results.exported(store, show, form_of(out)), replace=True)
        table = suite_results.table(store, show)
        return table | {"spec": {"cases": table["spec"]["cases"]}}
    if not (file or cases):
        return suite_results.listing(store)
    if out:  # hours before it is written
        form_of(out)
        check_writable(out, file)
    lanes = [one.model_dump() for one in lane or (LaneSettings(),)]
    if max_new_tokens != DEFAULTS.max_new_tokens:
        for one in lanes:
            one["sampling"]["max_new_tokens"] = max_new_tokens
    read = Cases(parse_cases(cases), []) if cases else read_cases(Path(file))
    if check:
        return read._asdict()
    values = {"name": name, "cases": read.cases, "lanes": lanes}
    job = submit(store, SuiteRequest.parse(values))
    return Reply(jobs=(job,), then=("suite", {"show": str(job.id), "out": out}))


@action("judge", title="Judge a suite", follow=True)
def judge(
    store: JobStore,
    suite: Annotated[
        int | str,
        field("Suite whose answers are judged.", positional=True, metavar="[SUITE]", of="suite"),
    ] = "",
    lane: Annotated[str, field("Judging lane.", title="Judging lane", **LANE)] = "starter",
    address: Annotated[
        str,
        field(
            "OpenAI-compatible judge instead of a lane, as http://127.0.0.1:8000/v1; its key is "
            "read from STUDIO_JUDGE_KEY.",
            title="Address",
            max_length=2000,
        ),
    ] = "",
    model: Annotated[
        str, field("Name of the model at the address; its first by default.", max_length=300)
    ] = "",
    allow_remote: Annotated[
        bool,
        field(
            "The address may be another machine: prompts and answers are sent there.",
            title="Send prompts and answers to another machine",
        ),
    ] = False,
    rubric: Annotated[
        str, field("Points to judge by, one a line.", lines=4, max_length=4000)
    ] = RUBRIC,
    votes: Annotated[
        int,
        field(
            "Your newest votes that it judges first, to know if it agrees with you.",
            title="Votes to compare with",
            ge=0,
            le=MAX_VOTES,
        ),
    ] = 20,
    min_agreement: Annotated[
        float,
        field(
            "Least share of your votes it must agree with to count as evidence.",
            title="Least agreement",
            ge=0.5,
            le=1,
        ),
    ] = 0.7,
    max_new_tokens: Annotated[
        int, field("Longest answer of the judge in tokens.", ge=8, le=4096, advanced=True)
    ] = 200,
    seconds: Annotated[
        float,
        field("Longest wait for one answer of an address.", unit="s", gt=0, le=3600, advanced=True),
    ] = 60.0,
    name: Annotated[str, field("Name of the judgement.", max_length=120)] = "",
    show: Annotated[str, field("Show this judgement again.", metavar="ID", of="judge")] = "",
) -> Any:
    """Let a model judge a suite's answers in pairs, both orders; list the judgements without one.

    Its verdicts stay apart from your votes; they count only if it agrees with you often enough.
    """
    if show:
        return suite_results.judgement(store, show)
    if not suite:
        return suite_results.judgements(store)
    asked = suite_results.judge_request(
        store, suite, votes=votes, name=name, address=address, model=model,
        allow_remote=allow_remote, rubric=rubric, min_agreement=min_agreement,
        max_new_tokens=max_new_tokens, seconds=seconds,
        lane=read_lane(lane),
    )  # fmt: skip
    job = submit(store, asked)
    return Reply(jobs=(job,), then=("judge", {"show": str(job.id)}))


@action("leaderboard")
def leaderboard(
    store: JobStore,
    blind: Annotated[bool, field("Count blind votes only.")] = False,
    out: Out = "",
) -> dict[str, Any]:
    """Rank the lanes by the votes on their answers."""
    votes = Votes(store.database)
    board = votes.board(blind_only=blind)
    if out:
        write_file(out, votes_as(form_of(out), votes.list(), board), replace=True)
    return board


@action("vote")
def vote(
    store: JobStore,
    conversation: Annotated[str, field("Conversation.", positional=True, metavar="ID")],
    turn: Annotated[int, field("Number of the turn, from 1.", positional=True, ge=1)],
    verdict: Annotated[
        str, field("A to P, tie, bad, or none to take the vote back.", positional=True)
    ],
    blind: Annotated[bool, field("The lanes were hidden.", flag="-")] = False,
    shown: Annotated[tuple[str, ...], field("The answers, as they were shown.", flag="-")] = NONE,
) -> dict[str, Any]:
    """Vote for the best answer of a turn."""
    talks, votes = Conversations(store.database), Votes(store.database)
    talk = talks.get(conversation)
    turns = talk["turns"]
    if turn > len(turns):
        raise ChatError(f"The conversation has {len(turns)} turns: there is no turn {turn}.")
    asked = turns[turn - 1]
    answers = asked["answers"]
    texts = [str(a.get("text", "")) for a in answers]
    if shown and texts != [*shown]:
        raise gone_on()
    word, letters = verdict.strip().lower(), LETTERS[: len(answers)]
    marks: list[str | None] = [None] * len(answers)
    if word == "none":
        votes.take_back(conversation, turn - 1)
    elif word in ("tie", "bad") or (len(word) == 1 and word.upper() in letters):
        winner = letters.index(word.upper()) if len(word) == 1 else None
        votes.cast(
            asked["prompt"], answered_lanes(talk, answers), winner=winner,
            bad=word == "bad", blind=blind, conversation=conversation, turn=turn - 1,
            answers=[spoken(as_message(a)) for a in answers],
        )  # fmt: skip
        marks = [
            word if winner is None else "won" if i == winner else "lost"
            for i in range(len(answers))
        ]
    else:
        raise ChatError(f'Invalid verdict "{verdict}": write {", ".join(letters)}, tie or bad.')
    marked = [
        {k: v for k, v in a.items() if k != "verdict"} | ({"verdict": m} if m else {})
        for a, m in zip(answers, marks, strict=True)
    ]
    talks.save_turn(conversation, turn - 1, prompt=asked["prompt"], answers=marked)
    return {"conversation": conversation, "turn": turn, "verdict": word}


@action("conversations")
def conversations(
    store: JobStore,
    search: Annotated[str, field("Part of a prompt or an answer.")] = "",
    show: Annotated[str, field("Print this one.", metavar="ID")] = "",
    delete: Annotated[str, field("Delete this one.", metavar="ID")] = "",
) -> Any:
    """List the conversations of the Compare page, newest first; print or delete one."""
    talks = Conversations(store.database)
    if delete:
        talks.delete(delete)
        return {"deleted": delete}
    return talks.get(show) if show else talks.list(search=search)


@action("endpoint", terminal=True)
def endpoint(
    home: Home,
    hours: Annotated[float, field("Shut down after this many idle hours.", ge=0.01, le=8760)] = 0.5,
) -> dict[str, Any]:
    """Print the address, key and model names of the OpenAI-compatible API; start it if needed."""
    from jobs.chat_client import ensure_host
    from jobs.openai_api import model_names

    reached = ensure_host(home, idle_seconds=hours * 3600)
    models = model_names(home)
    return {"base_url": f"{reached.url}/v1", "api_key": reached.token, "models": models}


@action("recipes")
def recipes(
    store: JobStore,
    save: Annotated[
        str,
        field(
            "Save the mix of the lane under this name.",
            title="Name",
            metavar="NAME",
            max_length=120,
        ),
    ] = "",
    lane: Annotated[str, field("Mix to save.", metavar="MODEL~ADAPTER:WEIGHT+…", of="lane")] = "",
    delete: Annotated[str, field("Delete this one.", metavar="NAME", of="recipe")] = "",
) -> list[dict[str, Any]]:
    """List, save or delete mixes; `studio mix` and `studio merge` make them permanent."""
    kept = Recipes(store.database)
    if save:
        mix = read_lane(lane)
        kept.save(save, mix["model"], mix["stack"])
    if delete:
        kept.delete(delete)
    return kept.list()
