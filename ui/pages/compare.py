"""Compare: lanes side by side, answering one prompt together. The page is one element of `assets/compare.js`."""

import gradio as gr

TITLE = "Compare"


def build() -> None:
    """Put the page's element into the open blocks."""
    gr.HTML("<studio-compare></studio-compare>")
