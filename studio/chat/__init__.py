"""The chat engine: lanes of a conversation answered together, token by token.

`lanes` holds the records (torch-free), `sampling` picks a token, `answer` turns tokens into text,
`prompt` fits a conversation into the context, `decoding` runs the model over a batch, `engine`
answers lanes on one base, `residents` keeps bases and adapters in memory.
"""
