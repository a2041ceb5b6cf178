"""From files and hub ids to rows, conversations, tokens with a loss mask, and a report.

The way of a row: `files` guards and decodes, `readers` cut it into rows, `recognise` says what they
are, `conversations` makes messages of them, `templates` turns messages into ids and labels, `cut`
keeps them within the context, `tokenise` writes and counts, `prepare` splits and reports. Whatever
is dropped is named by line. Nothing in a data file is ever executed.

What a page or command calls, all of it without torch (a `DataError` is the sentence to show):

- `sources.demos()`; `check.check_file(path, home=) -> FileReport`: never raises; `.error`, `.rows`,
  `.problems`, `.warnings`, `.suspicious`, `.duplicates`, `.mapping`, `.reason`.
- Mapping panel: `preview.guess(path, home)`, `preview.columns(path, home)` (dotted names with an
  example), `preview.corrected(source, format, {"columns", "templates", "constants", "roles"}, home)
  -> Mapping`, `preview.preview(path, mapping, count=, home=)` (first rows and what they become);
  `mapping.PARTS` lists each format's needed and optional parts.
- `importing.import_dataset(home, DataSource(path=...), name=, mapping=, progress=) -> Imported`:
  a job's body; `.snapshot.meta.name` is then a `DataSource.path` like any other.
- `snapshots.snapshots(home)`, `open_snapshot(home, name)`, `.page(offset, limit)`, `.problems()`,
  `delete_snapshot(home, name)`; `export.export_rows(snapshot, target)`.
- `curate.apply_step(home, name, Filter | Deduplicate | Split | Drop | Remap)` makes a new snapshot;
  `curate.lineage(home, name)`; `overlap.overlap(home, name, other)`.
- `xray.xray(source, xray.backend_for(model_folder), context_length=, rows= | pick=, home=)`: tokens
  with `state` trained, masked or truncated, equal to the loop's ids and labels.
- `prepare.prepare(source, tokenizer, context_length=, seed=, home=) -> Prepared`: what the loop
  reads; its `report` has the length histogram, truncation and trained share on that model.
"""
