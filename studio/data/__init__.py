"""From files and hub ids to rows, conversations, tokens with a loss mask, and a report.

The way of a row: `files` guards and decodes, `readers` cut it into rows, `recognise` says what they
are, `conversations` makes messages of them, `templates` turns messages into ids and labels, `cut`
keeps them within the context, `prepare` does all of it and reports. Everything that is dropped is
named by line. Nothing in a data file is ever executed. Importing this package loads no torch.
"""
