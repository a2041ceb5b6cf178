"""From files and hub ids to rows, conversations, tokens with a loss mask, and a report.

A row passes through `readers` (bytes to rows), `recognise_format` and `column_mapping` (which
column plays which part), `row_converters` (row to conversation), `template` (conversation to ids
and labels), `tokenise_rows` (cut, count) and `prepare_run_data` (cache, split, report). `xray`
shows the same tokens; `import_dataset`, `snapshots` and `curate_dataset` keep datasets. Whatever
is dropped is named by line. Nothing in a data file is ever executed; all of it runs without torch,
and what the user can mend is a `DataError`.
"""
