"""The resident engine: lanes of a conversation answered together, token by token.

`lanes` holds the records (torch-free), `sampling` picks a token, `text` turns tokens into text as
they come, `prompt` fits a conversation into the context, `decoding` runs the model over a batch,
`engine` answers lanes on one base, `residents` keeps bases and adapters in memory.
"""
