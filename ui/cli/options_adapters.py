"""The door's commands about adapters: their options; the bodies are in `jobs`."""

from typing import Annotated

import typer

from studio.home import open_home
from ui.cli.options import FollowOption, HomeOption, JsonOption

app = typer.Typer()
ModelOption = Annotated[str, typer.Option(help="A folder, a hub id, or starter.")]
QuantizationOption = Annotated[str, typer.Option(help="none, or nf4 for a 4-bit base.")]
AdaptersOption = Annotated[
    list[str],
    typer.Option("--adapter", metavar="NAME[:WEIGHT]", help="In stack order; may be repeated."),
]


@app.command()
def merge(
    adapter: AdaptersOption,
    model: ModelOption = "starter",
    quantization: QuantizationOption = "none",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
    out: Annotated[str, typer.Option(help="The new folder; in the home when empty.")] = "",
    name: Annotated[str, typer.Option(help="What to call it.")] = "",
    follow: FollowOption = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Fold adapters into a model of its own, with a certificate."""
    from studio.fields import validated
    from studio.spec import ModelSource
    from ui.cli import adapters_commands

    source = validated(ModelSource, {"path": model, "quantization": quantization, "dtype": dtype})
    return adapters_commands.merge(
        open_home(home), model=source, adapters=adapter, out=out, name=name, follow=follow,
        as_json=as_json,
    )  # fmt: skip


@app.command()
def mix(
    name: Annotated[str, typer.Option(help="What to call the new adapter.")],
    adapter: AdaptersOption,
    model: ModelOption = "starter",
    how: Annotated[str, typer.Option(help="concatenate, svd, ties, dare")] = "concatenate",
    r: Annotated[int, typer.Option(help="Rank of the result (not for concatenate).")] = 16,
    density: Annotated[float, typer.Option(help="Share kept by ties and dare.")] = 0.5,
    seed: Annotated[int, typer.Option(help="For dare.")] = 0,
    follow: FollowOption = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Mix several LoRAs into one new adapter."""
    from ui.cli import adapters_commands

    values = {
        "name": name, "model": {"path": model}, "how": how, "r": r, "density": density,
        "seed": seed,
    }  # fmt: skip
    return adapters_commands.mix(
        open_home(home), values, adapters=adapter, follow=follow, as_json=as_json
    )


@app.command()
def modules(
    model: ModelOption = "starter",
    as_json: JsonOption = False,
) -> None:
    """List a model's linear layers by name: what `method.target_modules` can say."""
    import json

    from studio.models.architecture import linear_modules
    from studio.spec import ModelSource

    found = linear_modules(ModelSource(path=model))
    if as_json:
        rows = [{"key": m.key, "layer": m.layer, "name": m.name, "shape": m.shape} for m in found]
        print(json.dumps(rows))
        return
    for one in found:
        print(f"{one.key}  {one.shape[0]} x {one.shape[1]}")


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="DIR", help="A folder or a hub id.")],
    name: Annotated[str, typer.Option(help="What to call it.")] = "",
    model: Annotated[str, typer.Option(help="Check it against this base.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Copy a PEFT or AdapterHub adapter into the library."""
    from ui.cli import adapters_commands

    return adapters_commands.import_(
        open_home(home), source, name=name, model=model, as_json=as_json
    )


@app.command()
def export(
    name: Annotated[
        str, typer.Argument(help="Name or folder of the adapter; for gguf a model folder too.")
    ],
    out: Annotated[str, typer.Option(help="The new folder.")],
    form: Annotated[
        str, typer.Option("--format", help="peft, vllm, adapterhub, card or gguf")
    ] = "peft",
    precision: Annotated[str, typer.Option(help="For gguf: f32, f16, bf16, q8_0.")] = "f16",
    model: Annotated[str, typer.Option(help="Its base, where the passport does not say.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Write an adapter to a folder of its own; gguf folds it into its base first, as a job."""
    from ui.cli import adapters_commands

    if form == "gguf":
        return adapters_commands.export_gguf(
            open_home(home), name, out=out, model=model, precision=precision, as_json=as_json
        )
    return adapters_commands.export(
        open_home(home), name, out=out, form=form, model=model, as_json=as_json
    )


@app.command()
def push(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="What an export or merge wrote.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to.")],
    public: Annotated[bool, typer.Option(help="Everybody can see it.")] = False,
    follow: FollowOption = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Upload an exported folder to the hub, with the token its own library keeps."""
    from ui.cli import adapters_commands

    values = {"folder": folder, "repo": repo, "private": not public}
    return adapters_commands.push(open_home(home), values, follow=follow, as_json=as_json)


@app.command()
def bakeoff(
    name: Annotated[str, typer.Option(help="What to call it.")] = "bake-off",
    model: ModelOption = "starter",
    data: Annotated[str, typer.Option(help="A file, a folder, a hub id, or starter:<name>.")] = (
        "starter:pirate"
    ),
    methods: Annotated[str, typer.Option(help="Comma-separated; all when empty.")] = "",
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="For every run.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Every adapter answers it; may be repeated.")
    ] = None,
    follow: FollowOption = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Train several methods on the same data and budget, and compare what they cost and learn."""
    from ui.cli import adapters_commands

    fields = {"model.path": model, "data.path": data}
    chosen = [word.strip() for word in methods.split(",") if word.strip()]
    return adapters_commands.bakeoff(
        open_home(home), name, fields, assignments or [], methods=chosen, prompts=prompt or [],
        follow=follow, as_json=as_json,
    )  # fmt: skip


@app.command()
def evaluate(
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:WEIGHT]", help="In stack order; none measures the base."),
    ] = None,
    model: Annotated[str, typer.Option(help="Its base; the first adapter's own when empty.")] = "",
    data: Annotated[str, typer.Option(help="A file, a folder, a hub id, or starter:<name>.")] = (
        "starter:pirate"
    ),
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="As in max_rows=100.")
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(help="Of generated answers: exact_match, rouge_l, regex, json."),
    ] = None,
    pattern: Annotated[str, typer.Option(help="What the score regex looks for.")] = "",
    name: Annotated[str, typer.Option(help="What to call it.")] = "",
    follow: FollowOption = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Measure a stack on a dataset: loss, perplexity, token accuracy, scores of its answers."""
    from ui.cli import evaluate_commands

    given = {
        "model.path": model, "data.path": data, "scores": list(score or []), "pattern": pattern,
        "name": name,
    }  # fmt: skip
    return evaluate_commands.evaluate(
        open_home(home), given, assignments or [], adapters=adapter or [], follow=follow,
        as_json=as_json,
    )  # fmt: skip
