"""A model as judge: compare the answers of a suite's lanes in pairs, and say how far to trust it.

Every pair is judged twice, with its answers in both orders, since judges favour a place
(arXiv:2306.05685). A lane wins a pair if both orders agree on it; else it is a tie. Reported beside
the wins are the share of verdicts for the answer shown first, the share of pairs in which both
orders agree, and how often the judge agrees with the user's own votes, which are judged first.
Below a stated agreement its verdicts count as no evidence.

Verdicts are written as they come, so a judge that fails leaves what was judged and the job resumes.

The judge is a lane of this studio, or a model behind an OpenAI-compatible address
(`POST /v1/chat/completions`). An address on the loopback is used as it is; another one only when
the request allows it, because prompts and answers leave this machine. Redirects are not followed,
and answers are bounded in size and time. A key is read from `STUDIO_JUDGE_KEY` and never stored.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import urlsplit

from studio import offline
from studio.adapter_stack import MAX_LANES
from studio.chat.lanes import Lane, LaneSettings, Message, Sampling
from studio.errors import ChatError, JudgeFailed, SpecError
from studio.evaluation.ranking_and_intervals import Match, leaderboard, wilson, wins_of
from studio.evaluation.suites import check_lanes, lines_of, read_results, resumed
from studio.fields import Record, knob
from studio.home import Home
from studio.job_request import Control, Request
from studio.training.training_events import Event, Loading

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)
VERDICTS = "judge.jsonl"
MIN_VOTES, MAX_VOTES = 10, 200
PATIENCE = 8  # answers without a verdict at the start, after which the judge is given up
MAX_REASON = 2000
TIE = "tie"
RUBRIC = """It answers what was asked, and is right.
It is clear and complete, and no longer than it needs to be.
Its tone and form are those that were asked for."""
QUESTION = """Compare two answers to the same prompt. Judge by these points:
{rubric}

### Prompt
{prompt}
{reference}
### Answer A
{first}

### Answer B
{second}

### Your task
Which answer is better? Give the reason in one sentence. Then end with one line that is exactly
"Verdict: A", "Verdict: B" or "Verdict: tie"."""
FOUND = re.compile(  # a bare A may be an article: it ends the line, or a verb follows
    r"verdict\W*(?:(?:a\s+)?(tie)"
    r"|(answer\s+[AB]|B|A(?=\s*(?:$|[^\w\s])|\s+(?:is|was|wins|because)\b)))"
    r"\b(?!\s+(?:or|and)\b|/)",
    re.IGNORECASE | re.MULTILINE,
)
Ask = Callable[[Sequence[str]], list[str]]
KEY = "STUDIO_JUDGE_KEY"
PATH = "/v1/chat/completions"
TRIES, WAIT_SECONDS, CONNECT_SECONDS = 3, 1.0, 5.0
MAX_BYTES = 2**21
BUSY = (429, 500, 502, 503, 504)


class JudgedPair(Record):
    """Two answers to a prompt, and the user's vote where there is one."""

    prompt: str
    before: tuple[Message, ...] = ()
    answers: tuple[str, str]
    lanes: tuple[str, str] = ("", "")
    expected: str = ""
    case: int = -1
    vote: int | str = knob("", "Place of the better answer, tie, or nothing without a vote.")
    vote_id: int = knob(-1, "Number of that vote, which may have several pairs.")


class JudgeRequest(Request):
    """Judge every pair of a suite's answers with a lane, or with a model behind an address."""

    kind: ClassVar[str] = "judge"
    suite: int = knob(0, "Number of the suite.", ge=0)
    lanes: tuple[str, ...] = knob((), "Names of its lanes.")
    lane: LaneSettings = LaneSettings()
    address: str = knob("", "Address of an OpenAI-compatible judge; empty uses the lane.")
    model: str = knob("", "Name of the model there; by default its first.", max_length=300)
    allow_remote: bool = knob(False, "Send prompts and answers to another machine.")
    rubric: str = knob(RUBRIC, "Points to judge by.", max_length=4000)
    votes: tuple[JudgedPair, ...] = knob(
        (), "Votes of the user, in pairs.", max_length=MAX_VOTES * (MAX_LANES - 1)
    )
    min_agreement: float = knob(0.7, "Least agreement with the votes.", ge=0.5, le=1)
    max_new_tokens: int = knob(200, "Longest answer of the judge, in tokens.", ge=8, le=4096)
    seconds: float = knob(60.0, "Longest wait for one answer.", gt=0, le=3600)
    device: str = knob("auto", "auto, cpu, cuda:0 …", advanced=True)

    def checked(self, home: Home) -> Self:
        """Refuse a suite with nothing to compare and a judge that cannot be asked."""
        self.pairs(home)
        if self.address:
            self._place(home)
        else:
            check_lanes(home, [self.lane])
        return self

    def pairs(self, home: Home) -> list[JudgedPair]:
        """Return the votes, then every pair of answers of the suite.

        Raises:
            ChatError: The suite has no two answers, or was deleted.
        """
        found = list(self.votes)
        for row in read_results(home.run(self.suite)):
            answered = zip(self.lanes, row["answers"], strict=True)
            usable = [(lane, answer["text"]) for lane, answer in answered if not answer["error"]]
            found += [
                JudgedPair(
                    prompt=row["prompt"], before=row.get("before", ()), answers=(one, other),
                    lanes=(a, b), case=row["case"], expected=row["expected"] or "",
                )
                for (a, one), (b, other) in combinations(usable, 2)
            ]  # fmt: skip
        if len(found) == len(self.votes):
            raise ChatError(
                f"Suite {self.suite} has no two answers to compare: run a suite over two or more "
                "lanes, and keep it until it is judged."
            )
        return found

    def perform(
        self, home: Home, run_dir: Path, control: Control = lambda: None
    ) -> Iterator[Event]:
        """Judge pair by pair and append each to `judge.jsonl`."""
        pairs = self.pairs(home)
        run_dir.mkdir(parents=True, exist_ok=True)
        rows = read_verdicts(run_dir)[: len(pairs)]
        yield Loading(text="Reaching the judge")
        with closing(self._judge(home)) as judge:

            def verdict(number: int) -> dict[str, Any]:
                rows.append(judged(pairs[number], self.rubric, judge.ask))
                return rows[-1]

            yield from resumed(
                run_dir / VERDICTS, len(pairs), verdict, control, what="Pair",
                check=lambda: _require_form(rows),
            )  # fmt: skip

    def _place(self, home: Home) -> str:
        away = offline.is_offline(home)
        return checked_address(self.address, allow_remote=self.allow_remote, offline=away)

    def _judge(self, home: Home) -> JudgeServer | _LaneJudge:
        if not self.address:
            return _LaneJudge(self, home)
        return JudgeServer(
            self._place(home), self.model, seconds=self.seconds, max_new_tokens=self.max_new_tokens
        )


class _LaneJudge:
    """A lane of this studio as judge: both orders in one batch."""

    def __init__(self, request: JudgeRequest, home: Home) -> None:
        from studio.chat.resident_models import ResidentModels

        sampling = Sampling(temperature=0, max_new_tokens=request.max_new_tokens)
        self._lane = request.lane.model_copy(update={"sampling": sampling})
        self._residents = ResidentModels(home, device=request.device)

    def close(self) -> None:
        """Free the model."""
        self._residents.release()

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """Return the greedy answers, without thoughts."""
        lanes: list[Lane] = [self._lane.with_prompt(prompt) for prompt in prompts]
        texts = [""] * len(lanes)
        for delta in self._residents.stream(lanes):
            if delta.error:
                raise JudgeFailed(f"The judging lane cannot answer: {delta.error.text}")
            texts[delta.lane] += delta.part("text")
        return texts


def judged(pair: JudgedPair, rubric: str, ask: Ask) -> dict[str, Any]:
    """Return a pair with its verdict: the place of the winner, `tie`, or None if unreadable.

    `shown` are the two verdicts by the place in which an answer was shown (0 is first). Equal
    answers are a tie without asking.
    """
    row: dict[str, Any] = pair.model_dump(mode="json") | {"shown": [], "reasons": []}
    one, other = (text.strip() for text in pair.answers)
    if one == other:
        return row | {"winner": TIE}
    reference = f"\n### A right answer\n{pair.expected}\n" if pair.expected else ""
    points = "\n".join(f"- {line.strip()}" for line in rubric.splitlines() if line.strip())
    turns = [f"{turn.role.title()}: {turn.content}" for turn in pair.before]
    asked = "\n\n".join([*turns, f"User: {pair.prompt}"]) if turns else pair.prompt
    how = {"rubric": points, "prompt": asked, "reference": reference}
    orders = ((one, other), (other, one))
    texts = ask([QUESTION.format(first=a, second=b, **how) for a, b in orders])
    first, swapped = map(verdict_in, texts)
    winners = [first, swapped if swapped in (TIE, None) else 1 - int(swapped)]
    agree = winners[0] == winners[1]
    winner = None if None in winners else winners[0] if agree else TIE
    reasons = [text.strip()[-MAX_REASON:] for text in texts]
    return row | {"winner": winner, "agree": agree, "shown": [first, swapped], "reasons": reasons}


def verdict_in(text: str) -> int | str | None:
    """Return the verdict of a judge's answer: 0 for A, 1 for B, `tie`, or None."""
    found = [match.groups() for match in FOUND.finditer(text)]
    if not found:
        return None
    tie, letter = found[-1]
    return TIE if tie else "AB".index(letter[-1].upper())


def _require_form(rows: Sequence[dict[str, Any]]) -> None:
    """Refuse a judge that began with answers of which none holds a verdict.

    Raises:
        JudgeFailed: Quotes the last answer.
    """
    asked = [verdict for row in rows for verdict in row["shown"]]
    if len(asked) >= PATIENCE and not any(verdict is not None for verdict in asked):
        last = next(row["reasons"][-1] for row in reversed(rows) if row["reasons"])
        raise JudgeFailed(
            f'None of the judge\'s first {len(asked)} answers ends with "Verdict: A", "B" or "tie" '
            f"(the last: {json.dumps(last[:120], ensure_ascii=False)}). Use a model that follows "
            "instructions, or allow longer answers (--max-new-tokens)."
        )


def read_verdicts(run_dir: Path) -> list[dict[str, Any]]:
    """Return the complete rows."""
    return lines_of(run_dir / VERDICTS)


def summarise(rows: Sequence[dict[str, Any]], *, min_agreement: float) -> dict[str, Any]:
    """Return wins and standings of the lanes, and how far the judge can be trusted.

    `first` is how often the answer shown first was chosen, ties left out: half for a judge without
    position bias. The two verdicts of a pair depend on each other, as do the pairs of a vote, so
    these are the units of the shares: of one, the mean of its verdicts or of its asked pairs. Each
    share has its 95 % interval.
    """
    votes = _votes(rows)
    cases = [row for row in rows if row["vote"] == ""]
    shown = [place for row in rows for place in row["shown"]]
    asked = [row for row in rows if row["shown"] and None not in row["shown"]]
    decided = [own for row in rows if (own := [p == 0 for p in row["shown"] if p in (0, 1)])]
    matches = [
        Match(lanes=tuple(row["lanes"]), winner=None if row["winner"] == TIE else row["winner"])
        for row in cases if row["winner"] is not None
    ]  # fmt: skip
    lanes, wins = wins_of(matches)
    agreed = sum(sum(own) / len(own) for own in votes)
    why = _no_evidence(agreed, len(votes), min_agreement)
    return {
        "lanes": lanes, "wins": wins, "pairs": len(cases),
        "standings": [one.as_dict() for one in leaderboard(matches)],
        "ties": sum(row["winner"] == TIE for row in cases),
        "unreadable": _share(shown.count(None), len(shown)),
        "first": _share(sum(sum(own) / len(own) for own in decided), len(decided)),
        "self_agreement": _share(sum(row["agree"] for row in asked), len(asked)),
        "agreement": _share(agreed, len(votes)),
        "min_agreement": min_agreement, "evidence": not why, "why": why,
    }  # fmt: skip


def _votes(rows: Sequence[dict[str, Any]]) -> list[list[bool]]:
    """Return for each vote if the judge agrees, pair by pair; it was not asked of equal answers."""
    found: dict[Any, list[bool]] = {}
    for place, row in enumerate(rows):
        if row["vote"] != "" and row["shown"]:
            number = row.get("vote_id", -1)
            own = found.setdefault((number, place if number < 0 else -1), [])
            own.append(row["winner"] == row["vote"])
    return list(found.values())


def _share(count: float, of: int) -> dict[str, Any]:
    low, high = wilson(count / of, of) if of else (0.0, 1.0)
    rate = count / of if of else None
    return {"count": round(count, 1), "of": of, "rate": rate, "low": low, "high": high}


def _no_evidence(agreed: float, votes: int, least: float) -> str:
    """Return why the verdicts do not count as evidence; empty if they do."""
    if votes < MIN_VOTES:
        return (
            f"Not evidence yet: it was compared with {votes} of your votes, and {MIN_VOTES} are "
            "needed. Vote on Compare, then judge again."
        )
    if agreed < least * votes:
        return (
            f"Not evidence: it agrees with you in {agreed:.4g} of {votes} votes, and {least:.0%} "
            "are needed. Change the rubric, or take another judge."
        )
    return ""


# -- a judge behind an address ---------------------------------------------------------------------


def checked_address(address: str, *, allow_remote: bool, offline: bool) -> str:
    """Return the address without its path, `/v1` included.

    Raises:
        SpecError: It is not an http address, or on another machine without permission.
    """
    text = address.strip().rstrip("/")
    for end in ("/chat/completions", "/v1"):
        text = text.removesuffix(end)
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query:
        raise SpecError(
            f'"{address}" is not the address of a judge: write it as http://127.0.0.1:8000/v1.',
            field="address",
        )
    if is_loopback(host):
        return text
    if not allow_remote:
        raise SpecError(
            f"{host} is another machine: prompts and answers of the suite would be sent there. "
            "Allow it (--allow-remote), or use an address on this machine.", field="allow_remote",
        )  # fmt: skip
    if offline:
        raise SpecError(
            f"{host} is another machine and the studio is offline: turn the offline switch off, or "
            "use a judge on this machine.", field="address",
        )  # fmt: skip
    return text


def is_loopback(host: str) -> bool:
    """Return True for an address of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class JudgeServer:
    """A client of one address."""

    def __init__(self, address: str, model: str, *, seconds: float, max_new_tokens: int) -> None:
        import httpx

        self._address, self._seconds, self._tokens = address, seconds, max_new_tokens
        key, near = os.environ.get(KEY, ""), is_loopback(urlsplit(address).hostname or "")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {}, trust_env=not near,
            timeout=httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS)),
        )  # fmt: skip
        self._pool = ThreadPoolExecutor(2)
        self._model = model or self._first_model()

    def close(self) -> None:
        """Close connections and threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """Return the answers to some prompts, asked at the same time.

        Raises:
            JudgeFailed: It is unreachable, refuses, is too slow or answers in another form.
        """
        return list(self._pool.map(self._answer, prompts))

    def _first_model(self) -> str:
        found = self._call("GET", "/v1/models", None)
        try:
            return str(found["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise JudgeFailed(
                f"The judge at {self._address} names no model: give one (--model)."
            ) from None

    def _answer(self, prompt: str) -> str:
        asked = {
            "model": self._model, "temperature": 0, "max_tokens": self._tokens,
            "messages": [{"role": "user", "content": prompt}],
        }  # fmt: skip
        found = self._call("POST", PATH, asked)
        try:
            content = found["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise JudgeFailed(
                f"The judge at {self._address} does not answer as OpenAI's API does: "
                "choices[0].message.content is missing."
            ) from None
        return content if isinstance(content, str) else ""

    def _call(self, verb: str, path: str, body: Any) -> Any:
        """Return the JSON of one call; a busy server and a lost connection are tried again."""
        import httpx

        for attempt in range(1, TRIES + 1):
            try:
                status, answer = self._once(verb, path, body)
            except httpx.TimeoutException as error:
                if isinstance(error, httpx.ConnectTimeout):
                    why = "it does not accept connections"
                else:
                    raise JudgeFailed(
                        f"The judge at {self._address} did not answer within {self._seconds:g} s. "
                        "Give it more time (--seconds) or use a faster one, then resume the job."
                    ) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                logger.warning("the judge cannot be reached: %s", error)
                why = "the connection failed"
            else:
                if status == httpx.codes.OK:
                    return answer
                why = f"it answered {status}"
                if status not in BUSY:
                    break
            if attempt < TRIES:
                time.sleep(WAIT_SECONDS * attempt)
        hint = "Check that it runs, then resume the job"
        if why.endswith((" 401", " 403")):
            hint = f"Set its key as {KEY} where the studio is started, then resume the job"
        elif why.endswith((" 400", " 404", " 422")):
            hint = "Check the address and the name of the model"
        raise JudgeFailed(f"The judge at {self._address} cannot be used: {why}. {hint}.")

    def _once(self, verb: str, path: str, body: Any) -> tuple[int, Any]:
        """Return status and JSON (None if it is not any) of one call that ends in time."""
        import httpx

        deadline, data = time.monotonic() + self._seconds, bytearray()
        with self._client.stream(verb, self._address + path, json=body) as answer:
            for part in answer.iter_bytes():
                data += part
                if len(data) > MAX_BYTES:
                    raise JudgeFailed(
                        f"The judge at {self._address} answers with over 2 MB of text."
                    )
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer comes too slowly")
        if answer.status_code != httpx.codes.OK:
            logger.warning("the judge answered %s: %.500r", answer.status_code, bytes(data))
            return answer.status_code, None
        try:
            return answer.status_code, json.loads(data)
        except ValueError:
            return answer.status_code, None
