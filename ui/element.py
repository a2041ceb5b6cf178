"""Bare HTML inside gradio's layout: our elements without gradio's prose styles around them."""

import html
import json
from typing import Any

import gradio as gr


def bare(value: str, **options: Any) -> gr.HTML:
    """Return an HTML block that brings no styles and no inset of its own."""
    return gr.HTML(value, apply_default_css=False, padding=False, **options)


def element(tag: str, values: dict[str, Any] | None = None) -> str:
    """Write one of our custom elements; its data is one escaped attribute."""
    data = f' data-value="{html.escape(json.dumps(values))}"' if values is not None else ""
    return f"<{tag}{data}></{tag}>"


def heading(words: str, level: int = 2) -> gr.HTML:
    """Return a heading of ours."""
    return bare(f"<h{level}>{html.escape(words)}</h{level}>")
