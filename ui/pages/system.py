"""System: devices, processes, the home folder. The page is one element of `assets/system.js`."""

import gradio as gr

TITLE = "System"


def build() -> None:
    """Put the page's element into the open blocks."""
    gr.HTML("<studio-system></studio-system>")
