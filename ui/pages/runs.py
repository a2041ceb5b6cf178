"""Runs: the queue, live curves and everything about one run. The page is one element of `assets/runs.js`."""

import gradio as gr

TITLE = "Runs"


def build() -> None:
    """Put the page's element into the open blocks."""
    gr.HTML("<studio-runs></studio-runs>")
