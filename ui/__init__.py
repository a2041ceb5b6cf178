"""The windows: the only place that knows gradio. Never imports torch."""
