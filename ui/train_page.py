"""Train: one page, one button. Everything is chosen already; everything can be changed.

The form is generated from the spec; the launch panel on the right shows the run it started, live.
Launching only writes a row into the queue: nothing here trains.
"""

import html
import itertools
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import gradio as gr

from jobs.actions.training import launch
from jobs.store import JobStore
from studio.errors import InputError, SpecError, StudioError
from studio.fields import Parameter
from studio.home import Home
from studio.methods import methods
from studio.spec import RunSpec
from ui import form_state, sources
from ui.form import DEFAULT_METHOD, METHOD, PARTS, Form, bare, element, form_fields, heading
from ui.uploads import SUFFIXES

Groups = list[tuple[str, Any]]
# Each field's change asks at once and answers may cross: the page keeps that of the highest turn.
NEXT_TURN = "(...values) => [...values.slice(0, -1), window.sTurn = (window.sTurn ?? 0) + 1]"
PRIVATE: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}


def build(page: gr.Blocks, home: Home, store: JobStore) -> None:
    """Lay out the page inside the open blocks."""
    form = Form()
    with gr.Row(elem_classes="s-train", equal_height=False):
        with gr.Column(elem_classes="s-form", min_width=320):
            bare("<studio-presets></studio-presets>", elem_id="presets")
            uploaded, upload, notes, groups = _fields(form, home)
        with gr.Column(elem_classes="s-side", min_width=320):
            launch = gr.Button("Train", variant="primary", elem_id="train")
            bare("<studio-preflight></studio-preflight>", elem_id="preflight")
            panel = bare("<studio-launch></studio-launch>", elem_id="launch")
            preview = bare(_notes(_preview(RunSpec()) | {"query": None}), elem_id="preview")
    inputs = list(form.components.values())
    outputs = [preview, *notes]

    def look(*values: Any) -> list[str]:
        *own, turn = values
        return _look(form, home, own, turn)

    def open_page(address: str) -> list[Any]:
        return _open(form, groups, home, address)

    def start(*values: Any) -> str:
        return _start(form, home, store, values)

    turn = gr.Number(0, visible=False)
    gr.on(
        [component.change for component in inputs],
        look,
        [*inputs, turn],
        outputs,
        js=NEXT_TURN,
        trigger_mode="always_last",
        **PRIVATE,
    )
    method = form.components["method.name"]
    method.change(
        lambda chosen: _shown_groups(groups, chosen),
        method,
        [group for _, group in groups],
        **PRIVATE,
    )
    uploaded.change(
        lambda path: gr.update(choices=sources.data_choices(home), value=path),
        uploaded,
        form.components["data.path"],
        **PRIVATE,
    )
    launch.click(start, inputs, panel, **PRIVATE)
    address = gr.Textbox(visible=False)
    page.load(
        open_page,
        address,
        [upload, *inputs, *outputs, *(group for _, group in groups)],
        js="() => location.search",
        **PRIVATE,
    )


def _fields(form: Form, home: Home) -> tuple[Any, Any, list[Any], Groups]:
    parts = {name: form_fields(cls, f"{name}.") for name, cls in PARTS.items()}
    with gr.Column(elem_classes="s-card"):
        heading("What to train")
        with gr.Row(elem_classes="s-pair"):
            form.add(parts["model"][0], sources.model_choices(home))
            form.add(parts["data"][0], sources.data_choices(home))
        with gr.Row(elem_classes="s-pair"):
            model_note = bare("", elem_id="model-note")
            data_note = bare("", elem_id="data-note")
        upload = bare(element("studio-upload"), elem_id="upload")
        uploaded = gr.Textbox(visible="hidden", elem_id="uploaded", show_label=False)
    with gr.Column(elem_classes="s-card"):
        heading("Method")
        groups = _methods(form)
        method_note = bare("", elem_id="method-note")
    with gr.Column(elem_classes="s-card"):
        heading("Training")
        with gr.Row(elem_classes="s-fields"):
            for field in [*parts["train"], *form_fields(RunSpec, "")]:
                if not field.advanced:
                    form.add(field)
    with gr.Accordion("Advanced", open=False, elem_classes="s-card s-advanced", elem_id="advanced"):
        for name, method in methods().items():
            more = [one for one in form_fields(method, f"method:{name}.") if one.advanced]
            if more:
                with gr.Column(
                    visible=name == DEFAULT_METHOD, elem_classes="s-method-more"
                ) as group:
                    _under(form, method.title, more)
                groups.append((name, group))
        for name, title in (("train", "Training"), ("data", "Data"), ("model", "Model")):
            more = [one for one in parts[name] if one.advanced]
            for words, some in itertools.groupby(more, key=lambda one: one.heading or title):
                _under(form, words, some)
    return uploaded, upload, [model_note, data_note, method_note], groups


def _under(form: Form, title: str, some: Iterable[Parameter]) -> None:
    heading(title, 3)
    with gr.Row(elem_classes="s-fields"):
        for field in some:
            if field.path == "train.device":
                box = form.add(field, sources.device_choices())
                box.input(sources.picked_devices, box, box, **PRIVATE)
            else:
                form.add(field)


def _methods(form: Form) -> Groups:
    groups: Groups = []
    with gr.Row(elem_classes="s-fields"):
        form.add(METHOD, [(method.title, name) for name, method in methods().items()])
        for name, method in methods().items():
            with gr.Row(visible=name == DEFAULT_METHOD, elem_classes="s-method") as group:
                for field in form_fields(method, f"method:{name}."):
                    if not field.advanced:
                        form.add(field)
            groups.append((name, group))
    return groups


def _look(form: Form, home: Home, values: Any, turn: int) -> list[str]:
    """Judge the form as it is: what it means, and a line on model, data and method."""
    try:
        spec = RunSpec.parse(form.read(values))
    except SpecError as error:
        return [_notes(form.wrong(values, error) | {"turn": turn})] + [gr.skip()] * 3
    return [_notes(_preview(spec) | {"turn": turn}), *_lines(spec, home)]


def _lines(spec: RunSpec, home: Home) -> list[str]:
    lines = []
    says: tuple[Callable[[], str], ...] = (
        lambda: _note(sources.model_line(spec.model)),
        lambda: _data_notes(spec, home),
    )
    for say in says:
        try:
            lines.append(say())
        except StudioError as error:
            lines.append(_note(error.text, "s-note s-wrong"))
    lines.append(_manual(sources.method_line(spec)))
    return lines


def _manual(words: str) -> str:
    """Show a manual, first when to use the method; a line ends only where a sentence does."""
    flowing = re.sub(r"(?<![.:\n])\n(?!\n)", " ", words)
    parts = sorted(flowing.split("\n\n"), key=lambda part: not part.startswith("When to use it"))
    shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape("\n\n".join(parts)))
    return f'<details class="s-manual"><summary>How it works</summary><pre>{shown}</pre></details>'


def _data_notes(spec: RunSpec, home: Home) -> str:
    line = sources.data_line(spec.data, home)
    words, too_little = sources.trained_line(spec, home)
    if too_little:
        return _note(line) + _note(words, "s-note s-warning")
    return _note(f"{line} · {words}" if words else line)


def _note(words: str, style: str = "s-note") -> str:
    return f'<p class="{style}">{html.escape(words)}</p>'


def _preview(spec: RunSpec) -> dict[str, Any]:
    return {
        "command": form_state.command_line(spec),
        "yaml": form_state.minimal_yaml(spec),
        "query": form_state.query(spec),
    }


def _notes(values: dict[str, Any]) -> str:
    return element("studio-notes", values)


def _open(form: Form, groups: Groups, home: Home, address: str) -> list[Any]:
    """Fill the form from the address, so that a reload or a link finds it as it was."""
    asked, error = "set=" in address or "preset=" in address, ""
    try:
        spec = form_state.from_address(home, address)
    except InputError as wrong:
        spec, error = RunSpec(), wrong.text
    shown = dict(zip(form.components, form.write(spec), strict=True))
    updates: list[Any] = [value if asked else gr.skip() for value in shown.values()]
    order = list(shown)
    for path, choices in (
        ("model.path", sources.model_choices(home)),
        ("data.path", sources.data_choices(home)),
    ):
        value = {"value": shown[path]} if asked else {}
        updates[order.index(path)] = gr.update(choices=choices, **value)
    notes = _preview(spec) | ({"error": error} if error else {})
    upload = element("studio-upload", {"accept": ",".join(SUFFIXES)})
    groups_shown = _shown_groups(groups, spec.method.name)
    return [upload, *updates, _notes(notes), *_lines(spec, home), *groups_shown]


def _shown_groups(groups: Groups, method: str) -> list[Any]:
    return [gr.update(visible=name == method) for name, _ in groups]


def _start(form: Form, home: Home, store: JobStore, values: Any) -> str:
    try:
        job = launch(store, RunSpec.parse(form.read(values)))
    except SpecError as error:
        return _refused(**form.wrong(values, error))
    except StudioError as error:
        return _refused(error.text)
    return element("studio-launch", {"job": job.id})


def _refused(error: str, field: str = "") -> str:
    # The time makes the same mistake twice two different values, so that it is shown again.
    return element("studio-launch", {"error": error, "field": field, "at": time.time()})
