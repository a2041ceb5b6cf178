"""The command `studio compare`: it answers in its own process, so pages never load a model."""

from typing import Annotated, Any

from jobs.actions.comparisons import DEFAULTS, NONE, Lanes, MaxNewTokens
from jobs.actions.registry import action, field
from jobs.recipes import Recipes
from jobs.store import JobStore


@action("compare")
def compare(
    store: JobStore,
    prompt: Annotated[str, field("Prompt for every lane.", max_length=2_000_000)],
    lane: Lanes = NONE,
    recipe: Annotated[
        tuple[str, ...], field("Lane by the name of a recipe; repeat for several.")
    ] = NONE,
    system: Annotated[str, field("System prompt.")] = "",
    max_new_tokens: MaxNewTokens = DEFAULTS.max_new_tokens,
    temperature: Annotated[
        float, field("0 picks the likeliest token.")
    ] = DEFAULTS.temperature,
    seed: Annotated[int, field("Same seed and prompt, same answer.")] = DEFAULTS.seed,
    logprobs: Annotated[
        int, field("Alternatives per token with log-probabilities; -1 for none.")
    ] = DEFAULTS.logprobs,
    device: Annotated[str, field("auto, cpu, cuda:0 …")] = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Ask several lanes the same prompt and print their answers."""
    from studio.chat.lanes import ChatRequest, LaneSettings, events_of
    from studio.chat.residents import ResidentModels

    kept = Recipes(store.database)
    lanes = [one.model_dump(include={"model", "stack"}) for one in lane]
    lanes += [{key: kept.get(name)[key] for key in ("model", "stack")} for name in recipe]
    lanes = lanes or [LaneSettings().model_dump(include={"model", "stack"})]
    shared = {
        "system": system, "messages": [{"role": "user", "content": prompt}],
        "sampling": {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed,
            "logprobs": logprobs,
        },
    }  # fmt: skip
    request = ChatRequest.parse({"lanes": [one | shared for one in lanes]})
    answers: list[dict[str, Any]] = [
        {"text": "", "notes": [], "logprobs": [], "lane": one.name} for one in request.lanes
    ]
    for delta in ResidentModels(store.home, device=device).stream(request.lanes):
        for event in events_of(delta):
            _take(answers[delta.lane], event)
    return {"lanes": answers}


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
