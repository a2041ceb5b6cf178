"""From files and hub ids to rows, conversations, tokens with a loss mask, and a report.

A row passes through `files` (decompress, decode), `readers` (bytes to rows), `recognise` and
`mapping` (which column plays which part), `rows` (row to conversation), `template` (conversation to
ids and labels), `tokens` (cut, write, count) and `prepare` (cache, split, report). `xray` shows the
same tokens, `survey` checks without a tokenizer, `snapshots`, `importing` and `curate` keep
datasets. Whatever is dropped is named by line. Nothing in a data file is ever executed; all of it
runs without torch, and what the user can mend is a `DataError`.
"""
