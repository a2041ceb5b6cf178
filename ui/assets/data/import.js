// Importing a dataset (file, upload, folder or hub id) and the mapping panel: row format, which column
// is which part, and the first rows rendered with that mapping.

import { api, bar, button, bytes, compact, count, dots, errorLine, fill, h, newest, quiet, redraw, say, t, table, text,
  toast, word } from '../core/dom.js';
import { actionForm, labelled, list, select } from '../core/form.js';
import { sendFile } from '../core/upload.js';
import { drawn } from './xray.js';

export class Import {
  constructor(page) {
    this.page = page;
    this.uploaded = false;
    this.path = h('input', { placeholder: t`A file or folder, owner/dataset, or words to search the hub for`,
      testid: 'import-path', label: t`Path, folder or hub id`, spellcheck: 'false',
      onkeydown: (event) => { if (event.key === 'Enter') this.look(); },
      oninput: () => { this.uploaded = false; } });
    this.file = h('input', { type: 'file', hidden: true, testid: 'import-file',
      onchange: () => this.upload(this.file.files[0]) });
    this.error = errorLine({ testid: 'import-error' });
    this.track = bar('s-wide', { hidden: true });
    this.going = quiet({ hidden: true, role: 'status' });
    this.looked = h('div.s-stack');
    const drop = h('div.s-drop', { ondragover: (event) => { event.preventDefault(); drop.dataset.over = ''; },
      ondragleave: () => delete drop.dataset.over,
      ondrop: (event) => {
        event.preventDefault();
        delete drop.dataset.over;
        this.upload(event.dataTransfer.files[0]);
      } },
      h('p', t`Drop a file here, or `, h('button.s-link', {
        onclick: () => this.file.click() }, t`choose one`), '.'),
      quiet(t`jsonl, json, csv, tsv, Excel (xlsx), parquet, txt, md, and gzip or zstd of these`));
    this.element = h('section.s-card.s-stack', h('h1', t`Import a dataset`), drop, this.file,
      h('div.s-import-path', this.path,
        button(t`Preview`, () => { this.look(); }, '', { testid: 'look' }),
        button(t`Search the hub`, () => this.searchHub())),
      quiet(t`Embedded demos: `, page.demos?.flatMap((name, at) => [at ? ', ' : '',
        h('button.s-link', { onclick: () => this.open(`starter:${name}`) }, name)])),
      this.track, this.going, this.error, this.looked);
  }

  fail(words) {
    say(this.error, words);
    this.track.hidden = this.going.hidden = true;
  }

  progress(words, part = null) {
    this.fail('');
    say(this.going, words);
    this.track.hidden = part === null;
    fill(this.track, part);
  }

  /** What `ask` returns; null if it is refused, which is shown, undefined if something newer has begun. */
  async newest(ask, words) {
    this.page.acts += 1;
    const turn = this.turn = {}, progress = (...said) => turn === this.turn && this.progress(...said);
    progress(words);
    try {
      const found = await newest(this, ask(progress));
      if (turn === this.turn) this.fail('');
      return found;
    } catch (error) { this.fail(error.message); }
    return null;
  }

  async upload(file) {
    if (!file) return;
    redraw(this.looked);
    this.file.value = '';
    const path = await this.newest((onProgress) => sendFile(file, { onProgress }));
    if (path) this.open(path, file.name, true);
  }

  open(path, shown = path, uploaded = false) {
    this.path.value = path;
    this.uploaded = uploaded;
    this.look(shown);
  }

  async searchHub() {
    redraw(this.looked);
    const found = await this.newest(() => api('/api/do/data.search', { words: this.path.value.trim() }));
    if (!found) return;
    redraw(this.looked, found.length ? table([t`Dataset`, t`Licence`, t`Downloads`], found.map((one) => [
      h('button.s-link', { onclick: () => this.open(one.id) }, one.id), dots(one.license, one.gated && t`gated`),
      compact(one.downloads)]), { testid: 'found' }) : quiet(t`The hub has no dataset with these words.`));
  }

  async look(shown = this.path.value.trim()) {
    const path = this.path.value.trim();
    redraw(this.looked);
    const nodes = await this.newest(async () => {
      if (!path) throw new Error(t`Enter a file, a folder or a hub id first.`);
      return this.settle(path, await api('/api/data/look', { path }));
    }, t`Reading ${shown} …`);
    if (nodes && path === this.path.value.trim()) redraw(this.looked, ...nodes); // else it was changed
  }

  /** The panel that imports what was found. */
  async settle(path, found) {
    const { hub } = found, part = hub?.part ?? {}, asks = hub && !hub.parts.length;
    const form = await actionForm('data.import', { kind: 's-lens', only: ['name', 'rows', 'pick', 'seed',
      ...(asks ? ['subset', 'split'] : [])] });
    const failed = (words) => {
      go.disabled = false;
      if (go.isConnected) this.fail(words); else toast(words, 'error');
    };
    const go = button(t`Import`, async () => {
      if (await panel.refused()) return;
      go.disabled = true;
      try {
        const job = await form.submit({ source: path, uploaded: this.uploaded, ...(asks ? {} : part),
          mapping: panel.changed ? panel.mapping : null });
        this.progress(t`The import is queued; the list above shows its progress.`);
        this.page.openResult(job, failed);
      } catch (error) { failed(error.message); }
    }, 's-primary', { testid: 'import-go' });
    const top = h('div.s-lens', form.element, go);
    const rays = this.xray(path, part, () => panel.mapping);
    const panel = new Mapping(this.page, path, { found, part, onchange: () => { this.fail(''); rays.stale(); } });
    const before = found.same_name[0];
    return [hub && this.parts(hub), top, before && quiet(t`A file of this name was imported before, as ${before};
      the same content is recognised.`), panel.element, rays.element].filter(Boolean);
  }

  /** What the hub says of a dataset; its parts to choose from. Nothing of it is downloaded yet. */
  parts(hub) {
    const choose = async (part) => {
      const panel = [...this.looked.children].slice(1), lock = (on) => panel.forEach((one) => { one.inert = on; });
      lock(true);
      const nodes = await this.newest(async () => this.settle(hub.id, {
        ...await api('/api/data/look', { path: hub.id, ...part }), hub: { ...hub, part } }),
      t`Streaming the first rows of ${part.subset} ${part.split} …`);
      if (nodes) redraw(this.looked, ...nodes);
      if (nodes !== null) return;
      lock(false);
      boxes.forEach((box, at) => { box.checked = is(hub.parts[at]); });
    };
    const is = (one) => one.subset === hub.part.subset && one.split === hub.part.split;
    const boxes = hub.parts.map(({ subset, split }) => h('input.s-box', { type: 'radio', name: 'part',
      checked: is({ subset, split }), onchange: () => choose({ subset, split }) }));
    return h('div.s-stack', { testid: 'hub-parts' }, quiet(dots(t`${hub.id} on the hub`,
      hub.license || t`no licence stated`, hub.gated && t`gated`, t`${bytes(hub.bytes)} in ${count(hub.files)} files`,
      t`only its first rows are here yet`)),
    hub.parts.length ? table([t`Configuration`, t`Split`, t`Rows`, t`Size`], hub.parts.map((one, at) => [one.subset,
      h('label.s-check', boxes[at], one.split), count(one.rows), bytes(one.bytes)])) : '');
  }

  /** The first rows as the trainer would see them, drawn when it is opened and after each change. */
  xray(source, part, mapping) {
    const words = quiet({ role: 'status' }), tokens = h('div.s-tokens');
    const model = select(this.page.models.map(([label, value]) => [value, label]), 'starter', () => show());
    const show = async () => {
      if (!element.open) return;
      try {
        const found = await newest(tokens, api('/api/do/data.xray', { source, ...part, model: model.value,
          whole: mapping(), count: 5 }));
        if (!found) return;
        const sum = (name) => found.reduce((total, row) => total + row[name], 0);
        text(words, t`${count(sum('num_tokens'))} tokens in the first ${found.length} rows · ${
          count(sum('num_trained'))} trained · ${count(sum('num_truncated'))} cut off`);
        redraw(tokens, ...found.flatMap((row) => [h('div.s-quiet', row.problem
          ? t`Row ${row.row} is dropped: ${row.problem}` : t`Row ${row.row}`), ...drawn([row])]));
      } catch (error) { text(words, error.message); }
    };
    const element = h('details.s-same', { testid: 'import-xray', ontoggle: show },
      h('summary', t`X-ray of the first rows`), h('div.s-stack', labelled(t`Model`, model), words,
        tokens));
    return { element, stale: () => { clearTimeout(this.later); this.later = setTimeout(show, 400); } };
  }
}

const MOST_COLUMNS = 60;
// kind, title, example
const PAIRS = [['templates', t`Combine columns`, 'prompt = {title}: {body}'], ['constants', t`The same in every row`,
  'prompt = Summarize this.'], ['roles', t`Role names of the file`, 'human = user']];

/** Lines of `name = text` as an object; a line end in a text is written as \\n. */
export const readPairs = (words) => Object.fromEntries(list(words, '\n').map((line) => {
  const [name, value = ''] = line.split(/\s*=\s*(.*)/, 2);
  return [name, value.replaceAll('\\n', '\n')];
}));
export const writePairs = (pairs) => Object.entries(pairs).map(([name, value]) =>
  `${name} = ${value.replaceAll('\n', '\\n')}`).join('\n');

export class Mapping {
  constructor(page, path, { found = null, save = null, onchange = null, part = {} } = {}) {
    Object.assign(this, { page, path, part, onchange, changed: false });
    this.why = quiet({ testid: 'guess' });
    this.error = errorLine({ testid: 'mapping-error' });
    this.controls = h('div.s-stack');
    this.preview = h('div.s-preview', { testid: 'preview' });
    this.element = h('div.s-mapping',
      h('div.s-stack', this.why, this.controls, this.error, save),
      h('div.s-stack', h('h2', t`The first rows`), this.preview));
    if (found) this.take(found, true);
  }

  /** Preview with the current mapping, or with the guess for another format. */
  look(format = '') {
    this.onchange?.();
    return this.asking = this.ask(format);
  }

  async ask(format) {
    const mapping = format || !this.mapping ? null : this.mapping;
    try {
      const found = await newest(this, api('/api/data/look', { path: this.path, ...this.part, format, mapping }));
      if (found) this.take(found, !mapping);
    } catch (error) { say(this.error, error.message); }
  }

  /** Return true if it cannot be used as it is, after scrolling to the reason and its field. */
  async refused() {
    await this.asking;
    if (this.error.hidden) return false;
    this.error.scrollIntoView({ block: 'center' });
    this.controls.querySelector('.s-columns select')?.focus({ preventScroll: true });
    return true;
  }

  take(found, anew) {
    say(this.error, found.problem);
    this.mapping = found.mapping;
    this.columns = found.columns;
    const format = found.mapping.format.replace('_', ' ');
    text(this.why, found.problem ? t`Choose the part of each column:`
      : found.reason === 'by hand' ? t`Corrected by hand.`
        : found.sure ? t`Recognised as ${format}: ${found.reason}.` : t`Guessed as ${format}: ${found.reason}.`);
    this.why.classList.toggle('s-warning', !found.sure);
    if (anew) this.draw();
    redraw(this.preview, ...found.rows.map(renderedRow));
  }

  change(edit) {
    this.changed = true;
    const mapping = structuredClone(this.mapping);
    edit(mapping);
    this.mapping = mapping;
    this.look();
  }

  draw() {
    const { mapping } = this, { needed, optional } = this.page.formats[mapping.format];
    const format = select(Object.keys(this.page.formats).map((name) => [name, name.replace('_', ' ')]), mapping.format,
      (name) => { this.changed = true; this.look(name); }, { testid: 'format' });
    const others = this.page.datasets.filter((one) => one.name !== this.path).map((one) => one.name);
    const reuse = others.length > 0 && labelled(t`Same as in`, select([['', '–'], ...others], '',
      (name) => this.reuse(name)));
    redraw(this.controls, h('div.s-lens', labelled(t`The rows are`, format), reuse),
      this.columnTable(), [...needed, ...optional].includes('system') ? this.systemPrompt() : '', this.pairs());
  }

  async reuse(name) {
    if (!name) return;
    const found = await newest(this.controls, api(`/api/data/${encodeURIComponent(name)}`));
    if (!found) return;
    this.mapping = found.mapping;
    this.changed = true;
    this.draw();
    this.look();
  }

  columnTable() {
    const { needed, optional } = this.page.formats[this.mapping.format];
    const used = Object.values(this.mapping.columns);
    const names = [...new Set([...Object.keys(this.columns ?? {}), ...used])] // in the file's order
      .filter((column, at) => at < MOST_COLUMNS || used.includes(column));
    const hidden = Object.keys(this.columns ?? {}).length - names.length;
    const parts = [['', t`not used`], ...needed.map((part) => [part, t`${part} (needed)`]), ...optional];
    const chosen = (column) => Object.keys(this.mapping.columns).find((part) => this.mapping.columns[part] === column);
    const choose = (column) => (part) => this.change((mapping) => {
      for (const old in mapping.columns) if (mapping.columns[old] === column) delete mapping.columns[old];
      if (!part) return;
      if (mapping.columns[part]) toast(t`${mapping.columns[part]} is no longer ${part}: ${column} is.`);
      mapping.columns[part] = column;
      delete mapping.templates[part];
      delete mapping.constants[part];
      queueMicrotask(() => this.draw());
    });
    const drawn = table([t`Column`, t`Example`, t`Its part`], names.map((column) => [
      h('td.s-path', column), h('span.s-example', this.columns?.[column] ?? ''),
      select(parts, chosen(column) ?? '', choose(column), { testid: `part-${column}`,
        label: t`Part of ${column}` })]), { class: 's-table s-columns' });
    if (hidden > 0) drawn.append(h('caption', t`and ${hidden} more columns`));
    return drawn;
  }

  systemPrompt() {
    const input = h('input', { placeholder: t`none`, testid: 'system-prompt',
      value: this.mapping.constants.system ?? '', oninput: () =>
      this.change((mapping) => {
        if (input.value) {
          mapping.constants.system = input.value;
          delete mapping.columns.system;
          delete mapping.templates.system;
        } else delete mapping.constants.system;
      }) });
    return labelled(t`System prompt for every row`, input);
  }

  /** Parts that are combined from columns or fixed, and roles that the file names otherwise: one pair a line. */
  pairs() {
    const area = ([kind, title, placeholder]) => {
      const { system: _, ...rest } = this.mapping[kind], shown = kind === 'constants' ? rest : this.mapping[kind];
      const node = h('textarea', { rows: 2, spellcheck: 'false', placeholder, testid: `pairs-${kind}`,
        onchange: () => this.change((mapping) => {
          const { system } = mapping.constants;
          mapping[kind] = readPairs(node.value);
          if (kind === 'constants' && system) mapping.constants.system = system;
          if (kind !== 'roles') for (const part in mapping[kind]) delete mapping.columns[part];
          queueMicrotask(() => this.draw());
        }) });
      node.value = writePairs(shown);
      return [node.value, labelled(title, node)];
    };
    const areas = PAIRS.slice(0, ['messages', 'sharegpt'].includes(this.mapping.format) ? 3 : 2).map(area);
    return h('details.s-same', { open: areas.some(([used]) => used) }, h('summary', t`More parts`),
      h('div.s-stack', areas.map(([, node]) => node)));
  }
}

function renderedRow(row) {
  const raw = !row.messages && row.text === undefined && !row.problem;
  return h('article.s-rendered', h('header', t`line ${row.line}`), rendered(row),
    raw ? null : h('details.s-same', h('summary', t`As it is in the file`),
      h('pre', JSON.stringify(row.row, null, 1))));
}

/** A row as it is read: messages (of a pair with both answers, of a judged answer with its verdict), a text, or why
 *  it is dropped. */
export function rendered(row) {
  if (row.problem) return h('p.s-error', t`Dropped: ${row.problem}`);
  if (!row.messages && row.text === undefined) return h('pre', JSON.stringify(row.row, null, 1));
  if (row.text !== undefined) return h('p.s-said', row.text);
  return h('div.s-stack', messages(row.messages),
    row.rejected && h('div.s-sides', ['chosen', 'rejected'].map((side) =>
      h('section', { 'data-side': side }, h('h4', word(side)), messages(row[side])))),
    row.good !== undefined && quiet(row.good ? t`Judged as good` : t`Judged as bad`),
    row.tools?.length > 0 && quiet(t`${row.tools.length} tools may be called`));
}

const messages = (list) => h('div.s-messages', list.map((message) => h('div',
  { 'data-role': message.role },
  h('span.s-role', message.role),
  h('p.s-said', message.content, message.tool_calls && h('code', JSON.stringify(message.tool_calls))))));
