"""Write HTML reports: a run, several runs, a bake-off or a conversation as one self-contained page.

Everything is read from the database, the runs' folders and the datasets; no model is loaded. What
is gone, such as a deleted dataset, is left out with a word.
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs import bakeoff, suite_results
from jobs.compare_tables import Conversations, Votes, as_message, settings_of
from jobs.job_queue import JobStore
from jobs.job_record import TRAINS, Job, summary
from jobs.outcome_figures import figures
from jobs.run_findings import reading
from studio.adapter_stack import StackItem, read_lane, write_lane
from studio.adapters import library
from studio.adapters.merge import read_certificate
from studio.chat.lanes import Sampling
from studio.chat.thought_and_tool_parser import spoken
from studio.errors import AdapterError, QueueError, StudioError
from studio.evaluation.html_and_csv_exports import (
    Section,
    chart,
    page,
    said,
    say,
    table,
    text_of,
    title,
)
from studio.home import Home
from studio.methods import methods
from studio.names import readable
from studio.spec import RunSpec, command_line, differences

CURVES = {
    "loss": "Training loss", "eval_loss": "Held-out loss", "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm", "eval_rewards_accuracies": "Held-out reward accuracy",
    "eval_kl": "KL to the reference, per token",
}  # fmt: skip
FIGURES = {
    "first_loss": "First loss", "last_loss": "Last loss", "eval_loss": "Held-out loss",
    "forgetting": "KL from the base", "step": "Steps", "seconds": "Seconds",
}  # fmt: skip
BINS, NUM_ROWS, NUM_SHOTS, NUM_TOKENS = 400, 3, 5, 400


def report(store: JobStore, names: Sequence[str], conversation: str = "") -> tuple[str, str]:
    """Return the file name and the HTML report on jobs, by number or name, or on a conversation.

    Raises:
        StudioError: One of them does not exist, or nothing can be reported of it.
    """
    if conversation:
        return f"conversation-{conversation}.html", of_conversation(store, conversation)
    jobs = [store.get(name) for name in names]
    if not jobs:
        raise QueueError("Name a run, several runs, a bake-off or a conversation to report.")
    if len(jobs) > 1:
        if other := next((job for job in jobs if job.kind not in TRAINS), None):
            raise QueueError(f'"{other.name}" is a job of kind {other.kind}: compare runs only.')
        return "comparison.html", of_runs(store, jobs)
    job = jobs[0]
    if job.kind == "bakeoff":
        made = of_bakeoff(store, str(job.sweep))
    elif job.kind == suite_results.KIND:
        made = suite_results.exported(store, job.id, "html")
    elif job.kind == "merge" or job.kind in TRAINS:
        made = of_run(store, job)
    else:
        raise QueueError(f'"{job.name}" is a job of kind {job.kind}: it has no report.')
    return f"{job.name}.html", made


def of_run(store: JobStore, job: Job) -> str:
    """Return the HTML report on one run, or on a merge."""
    facts = summary(job)
    number = say(f"Run {job.id}") if job.kind in TRAINS else say(f"Job {job.id}")
    words = [number, say(facts["state"]), _day(job.started),
             say(f"on {job.device}") if job.device else ""]  # fmt: skip
    sections = [
        Section(heading=say("The error"), note=say(job.error_text)) if job.error_text else None,
        *([_figures(job), *_curves(store, [job]), _reading(store, job), _sources(job),
           _forgetting(job), _samples(store, [job])] if job.kind in TRAINS else []),
        _xray(store.home, [job]), _votes(store, [job]), *_certificates(store, job),
        _settings([job]), _repeat(job),
        Section(heading=say("Notes"), note=job.notes) if job.notes else None,
    ]  # fmt: skip
    return _page(job.name, " · ".join(filter(None, words)), sections)


def _reading(store: JobStore, job: Job) -> Section | None:
    found = [
        (one["title"], one["text"], (one["remedy"] or {}).get("title", ""))
        for one in reading(store, job)
    ]
    head = (say("Sign"), say("Evidence"), say("Remedy"))
    rows = [[*map(say, one)] for one in found]
    return table(say("What the curves say"), head, rows) if rows else None


def _sources(job: Job) -> Section | None:
    """Return the rows and the held-out loss of each source of a mix."""
    found = job.result.get("sources") or []
    head = (say("Source"), say("Rows"), say("Held-out rows"), say("Held-out loss"))
    rows = [
        (one["name"], one["rows"], one["held_out"], one.get("reward", one.get("eval_loss")))
        for one in found
    ]
    if found and "reward" in found[0]:
        head = (*head[:-1], say("Held-out reward"))
    return table(say("By source of the mix"), head, rows) if rows else None


def of_runs(store: JobStore, jobs: Sequence[Job]) -> str:
    """Return the HTML report on several runs beside each other."""
    return _page(
        say(f"{jobs[0].name} against {jobs[1].name}") if len(jobs) == 2
        else say(f"{len(jobs)} runs"),
        say(f"Runs {', '.join(str(job.id) for job in jobs)}"), _beside(store, jobs),
    )  # fmt: skip


def of_bakeoff(store: JobStore, name: str) -> str:
    """Return the HTML report on a bake-off."""
    found = bakeoff.shown(store, name)
    rows, columns = found["rows"], found["columns"]
    heads = [say("Method"), *(say(one["title"]) for one in columns)]
    ranked = sorted(rows, key=lambda row: (row["eval_loss"] is None, row["eval_loss"] or 0))
    cells = [
        [say(row["title"]), *(
            readable(value) if value and one["unit"] == "bytes" else value
            for one in columns for value in [row[one["key"]]]
        )] for row in ranked
    ]  # fmt: skip
    points = [f"{say(row['title'])}: {say(row['error'])}" for row in rows if row["error"]]
    jobs = [store.get(run) for row in rows for run in row["runs"]]
    answers = [
        {"prompt": prompt, "answers": [(say(row["title"]), row["answers"][at], "") for row in rows
                                       if len(row["answers"]) > at]}
        for at, prompt in enumerate(found["prompts"])
    ]  # fmt: skip
    return _page(name, say("Methods on the same data and budget"), [
        table(say("Results"), heads, cells, note=" ".join(points)),
        Section(heading=say("Answers"), answers=[one for one in answers if one["answers"]])
        if any(one["answers"] for one in answers) else None,
        *_beside(store, jobs, figures=False),
    ])  # fmt: skip


def of_conversation(store: JobStore, conversation: str) -> str:
    """Return the HTML report on a conversation of Compare."""
    found = Conversations(store.database).get(conversation)
    verdicts = {
        "won": say("won"), "lost": say("lost"), "tie": say("tie"), "bad": say("all bad"),
    }  # fmt: skip
    turns = [
        {"prompt": turn["prompt"], "answers": [
            (title(str(answer.get("lane", ""))), spoken(as_message(answer)),
             verdicts.get(str(answer.get("verdict")), ""))
            for answer in turn["answers"] if answer
        ]} for turn in found["turns"]
    ]  # fmt: skip
    votes = [v for v in Votes(store.database).list() if v["conversation"] == conversation]
    asked = [settings_of(found, lane) for lane in found["lanes"]]
    used = {key for own in asked for key in own.get("sampling") or {}}
    keys = {key: knob.title for key, knob in Sampling.model_fields.items() if key in used}
    rows = [
        [
            title(write_lane(lane["model"], [StackItem(**item) for item in lane["stack"]])),
            own.get("system"),
            *((own.get("sampling") or {}).get(key) for key in keys),
        ]
        for lane, own in zip(found["lanes"], asked, strict=True)
    ]
    head = (say("Lane"), say("System prompt"), *(say(words or "") for words in keys.values()))
    asks = {"blind": say("Blind"), "alone": say("Each prompt alone")}
    how = [(words, text_of(bool(found["settings"].get(key)))) for key, words in asks.items()]
    summary = say(f"{len(turns)} turns, {len(rows)} lanes")
    return _page(found["title"] or say("Conversation"), summary, [
        Section(heading=say("Answers"), answers=turns),
        table(say("Votes"), (say("Prompt"), say("Verdict"), say("Blind")), [
            (vote["prompt"], said(vote), bool(vote["blind"])) for vote in votes
        ]) if votes else None,
        table(say("Lanes"), head, rows, pairs=how),
    ])  # fmt: skip


def _beside(store: JobStore, jobs: Sequence[Job], *, figures: bool = True) -> list[Section | None]:
    heads = (say("Run"), say("Method"), say("State"), *map(say, FIGURES.values()))
    rows = [
        (job.name, _method(job), say(job.state), *(summary(job)[key] for key in FIGURES))
        for job in jobs
    ]
    return [
        table(say("Figures"), heads, rows) if figures else None, *_curves(store, jobs),
        _samples(store, jobs), _xray(store.home, jobs), _votes(store, jobs), _settings(jobs),
    ]  # fmt: skip


def _page(name: str, words: str, sections: Iterable[Section | None]) -> str:
    made = f"{words} · Adapter Studio, {_day(time.time())}"
    return page(name, made, list(sections))


def _day(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else ""


def _method(job: Job) -> str:
    name = str((job.spec.get("method") or {}).get("name", ""))
    known = methods().get(name)
    return say(known.title) if known else name


def _figures(job: Job) -> Section:
    facts, rows = summary(job), job.result.get("rows") or {}
    shared = job.result.get("tokens_shared")
    own = {
        say("Model"): (job.spec.get("model") or {}).get("path"), say("Method"): _method(job),
        say("Data"): (job.spec.get("data") or {}).get("path"),
        **{say(words): facts[key] for key, words in FIGURES.items()},
        say("Rows trained on"): rows.get("trained", rows.get("kept")),
        say("Rows held out"): rows.get("held_out"), say("Rows evaluated on"): rows.get("evaluated"),
        say("Rows dropped"): rows.get("dropped"),
        say("Rows cut at the context"): rows.get("truncated"),
        say("Prompt tokens computed once for several answers"): shared and f"{shared:.0%}",
        say("Trainable parameters"): job.result.get("trainable_parameters"),
        say("Parameters"): job.result.get("total_parameters"),
        say("Learning rate"): job.result.get("learning_rate"),
        say("Precision"): job.result.get("dtype"),
    }  # fmt: skip
    known = [(name, text_of(value)) for name, value in own.items() if value not in (None, "")]
    return Section(heading=say("Figures"), pairs=known)


def _curves(store: JobStore, jobs: Sequence[Job]) -> list[Section | None]:
    charts = (
        chart(say(words), {job.name: store.points(job.id, name, bins=BINS) for job in jobs})
        for name, words in CURVES.items()
    )
    drawn = [one for one in charts if one]
    return [Section(heading=say("Curves"), charts=drawn)] if drawn else []


def _forgetting(job: Job) -> Section | None:
    found = job.result.get("forgetting") or {}
    if found.get("loss_before") is None:
        return None
    rows = [(name, *pair) for name, pair in (found.get("domains") or {}).items()]
    words = say(
        f"KL from the base: {text_of(found.get('forgetting'))} nats per token. "
        f"{found.get('changed')} of {found.get('prompts')} answers to neutral prompts changed."
    )
    head = (say("Texts"), say("Loss before"), say("Loss after"))
    return table(say("What it forgot"), head, rows, note=words)


def _samples(store: JobStore, jobs: Sequence[Job]) -> Section | None:
    """Return answers to the sample prompts: along one run, or at the end of several."""
    told: dict[str, list[tuple[str, str, str]]] = {}
    for job in jobs:
        for one in job.result.get("questions") or []:
            if not one["trained"]:
                told.setdefault(one["prompt"], [(say("Wanted answer"), one["wanted"], "")])
        by_prompt: dict[str, list[dict[str, Any]]] = {}
        for shot in store.samples(job.id):
            by_prompt.setdefault(shot["prompt"], []).append(shot)
        for prompt, shots in by_prompt.items():
            last = len(shots) - 1
            picked = sorted({last * n // (NUM_SHOTS - 1) for n in range(NUM_SHOTS)})
            for shot in [shots[at] for at in picked] if len(jobs) == 1 else shots[-1:]:
                step = say(f"Step {shot['step']}") if shot["step"] else say("Before training")
                name = step if len(jobs) == 1 else job.name
                told.setdefault(prompt, []).append((name, shot["text"] or "–", ""))
    answers = [{"prompt": prompt, "answers": shots} for prompt, shots in told.items()]
    return Section(heading=say("Sample answers"), answers=answers) if answers else None


def _xray(home: Home, jobs: Sequence[Job]) -> Section | None:
    """Return the first rows of each dataset as the trainer saw them."""
    from studio.data.xray import first_xrays

    shown: dict[str, list[dict[str, Any]]] = {}
    sides = {"chosen": say("chosen"), "rejected": say("rejected")}
    for job in jobs:
        with suppress(StudioError, OSError):
            spec = RunSpec.parse(job.spec)
            if spec.data.path in shown:
                continue
            shown[spec.data.path] = [
                {"title": " · ".join(filter(None, (say(f"Row {row.row}"), sides.get(row.side)))),
                 "note": say(row.problem) or say(
                     f"{row.num_tokens} tokens, {row.num_trained} trained, {row.num_truncated} cut"
                 ),
                 "tokens": [(one.text, one.state) for one in row.tokens[:NUM_TOKENS]]}
                for row in first_xrays(spec, home, NUM_ROWS)
            ]  # fmt: skip
    tokens = [one for rows in shown.values() for one in rows]
    words = say("Coloured tokens are trained, grey ones masked, struck ones cut at the context.")
    if not tokens and any(job.kind in TRAINS for job in jobs):
        words = say("The dataset or model is not here any more.")
    elif not tokens:
        return None
    return Section(heading=say("Rows as tokens"), note=words, tokens=tokens)


def _votes(store: JobStore, jobs: Sequence[Job]) -> Section | None:
    """Return the votes on answers of these runs' adapters."""
    ids = {job.id for job in jobs}
    folders = {str(Path(job.result["adapter"])) for job in jobs if job.result.get("adapter")}

    def ours(lane: str) -> bool:
        for part in read_lane(lane)["stack"]:
            run, at, _ = part["name"].partition("@")
            if at and run.isdecimal() and int(run) in ids:
                return True
            with suppress(AdapterError):
                if str(library.resolve(store.home, part["name"])) in folders:
                    return True
        return False

    found = [vote for vote in Votes(store.database).list() if any(map(ours, vote["lanes"]))]
    rows = [
        (vote["prompt"], " · ".join(map(title, vote["lanes"])), said(vote), bool(vote["blind"]))
        for vote in found
    ]
    head = (say("Prompt"), say("Lanes"), say("Verdict"), say("Blind"))
    return table(say("Votes"), head, rows) if rows else None


def _certificates(store: JobStore, job: Job) -> list[Section | None]:
    """Return the certificates of a merge, or of the merges that this run's adapter went into."""
    adapter = job.result.get("adapter")
    merges = [job] if job.kind == "merge" else []
    for one in store.list(["succeeded"]) if job.kind in TRAINS and adapter else ():
        names = (
            [part["name"] for part in one.spec.get("stack") or ()] if one.kind == "merge" else []
        )
        for name in names:
            with suppress(AdapterError):
                if str(library.resolve(store.home, name)) == adapter:
                    merges.append(one)
    sections: list[Section | None] = []
    for one in merges:
        found = read_certificate(Path(str(one.result.get("adapter") or one.spec.get("out", ""))))
        if pairs := figures("merge", {"certificate": found}):
            sections.append(Section(heading=say(f"Certificate of “{one.name}”"), pairs=pairs))
    return sections


def _settings(jobs: Sequence[Job]) -> Section | None:
    """Return what differs from the defaults, by run; of several only what differs among them."""
    changed: list[dict[str, Any]] = []
    for job in jobs:
        with suppress(StudioError):
            changed.append(differences(RunSpec.parse(job.spec)))
    if len(changed) != len(jobs) or not jobs:
        return None
    keys = sorted({key for one in changed for key in one} - {"name", "seed"} | {"seed"})
    if len(jobs) > 1:
        keys = [key for key in keys if len({str(one.get(key)) for one in changed}) > 1]
    rows = [(key, *(one.get(key, say("default")) for one in changed)) for key in keys
            if any(key in one for one in changed)]  # fmt: skip
    note = say("What differs from the defaults.")
    if len(jobs) > 1:
        note = say("What differs between the runs.")
    return table(say("Settings"), (say("Setting"), *(job.name for job in jobs)), rows, note=note)


def _repeat(job: Job) -> Section | None:
    with suppress(StudioError):
        spec = RunSpec.parse(job.spec)
        return Section(
            heading=say("To repeat it"), code=f"{command_line(spec)}\n\n{spec.to_yaml()}"
        )
    return None
