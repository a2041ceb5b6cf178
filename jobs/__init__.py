"""The queue: SQLite, processes, leases. Imports studio's torch-free parts; never gradio."""
