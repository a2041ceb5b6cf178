"""The chat engine: lanes of a conversation answered together, token by token.

`lanes` holds the records (torch-free), `prompt_and_answer` fits a conversation into the context and
turns tokens into text, `sampling` picks a token, `decoding` runs the model over a batch,
`chat_engine` answers lanes on one base, `resident_models` keeps bases and adapters in memory.
"""
