// Importing a dataset (file, upload, folder or hub id) and the mapping panel: row format, which column
// is which part, and the first rows rendered with that mapping.

import { api, button, h, text } from '../core/dom.js';
import { options } from '../core/form.js';
import { sendFile } from '../core/upload.js';
import { labelled } from './xray.js';

export class Import {
  constructor(page) {
    this.page = page;
    this.uploaded = false;
    this.path = h('input', { placeholder: '/path/to/file or folder, owner/dataset, starter:pirate',
      'data-testid': 'import-path', 'aria-label': 'Path, folder or hub id', spellcheck: 'false',
      onkeydown: (event) => { if (event.key === 'Enter') this.look(); },
      oninput: () => { this.uploaded = false; } });
    this.file = h('input', { type: 'file', hidden: true, 'data-testid': 'import-file',
      onchange: () => this.upload(this.file.files[0]) });
    this.error = h('p', { class: 's-error', role: 'alert', hidden: true, 'data-testid': 'import-error' });
    this.track = h('span', { class: 's-bar-track s-wide', hidden: true }, h('span', {}));
    this.going = h('p', { class: 's-quiet', hidden: true, role: 'status' });
    this.looked = h('div', { class: 's-stack' });
    const drop = h('div', { class: 's-drop', ondragover: (event) => { event.preventDefault(); drop.dataset.over = ''; },
      ondragleave: () => delete drop.dataset.over,
      ondrop: (event) => {
        event.preventDefault();
        delete drop.dataset.over;
        if (event.dataTransfer.files[0]) this.upload(event.dataTransfer.files[0]);
      } },
      h('p', {}, 'Drop a file here, or ', h('button', { type: 'button', class: 's-link',
        onclick: () => this.file.click() }, 'choose one'), '.'),
      h('p', { class: 's-quiet' }, 'jsonl, json, csv, tsv, parquet, txt, md, and gzip or zstd of these'));
    this.element = h('section', { class: 's-card s-stack' }, h('h1', {}, 'Import a dataset'), drop, this.file,
      h('div', { class: 's-import-path' }, this.path, button('Look', () => { this.look(); }, '', { 'data-testid': 'look' })),
      h('p', { class: 's-quiet' }, 'Embedded demos: ', page.demos?.flatMap((name, at) => [at ? ', ' : '',
        h('button', { type: 'button', class: 's-link', onclick: () => {
          this.path.value = `starter:${name}`;
          this.uploaded = false;
          this.look();
        } }, name)])),
      this.track, this.going, this.error, this.looked);
  }

  fail(words) {
    text(this.error, words);
    this.error.hidden = !words;
    this.track.hidden = this.going.hidden = true;
  }

  say(words, part) {
    this.fail('');
    text(this.going, words);
    this.going.hidden = false;
    this.track.hidden = part === undefined;
    if (part !== undefined) this.track.firstChild.style.width = `${100 * part}%`;
  }

  async upload(file) {
    if (!file) return;
    this.looked.replaceChildren();
    this.file.value = '';
    try {
      this.path.value = await sendFile(file, { onProgress: (words, part) => this.say(words, part) });
    } catch (error) { this.fail(error.message); return; }
    this.uploaded = true;
    this.look(file.name);
  }

  async look(shown = this.path.value.trim()) {
    const path = this.path.value.trim();
    this.looked.replaceChildren();
    if (!path) return this.fail('Name a file, a folder or a hub id first.');
    this.say(`Looking at ${shown} …`);
    let found;
    try {
      found = await api('/api/data/look', { path });
    } catch (error) { return this.fail(error.message); }
    if (path !== this.path.value.trim()) return undefined; // the person went on
    this.fail('');
    this.settle(path, shown, found);
  }

  settle(path, shown, found) {
    const name = h('input', { placeholder: 'made from the file\'s name', 'data-testid': 'import-name' });
    const subset = h('input', {}), split = h('input', { value: 'train' });
    const go = button('Import', async () => {
      if (await panel?.refused()) return;
      await this.queue(go, { path, name: name.value, uploaded: this.uploaded, subset: subset.value,
        split: split.value || 'train', mapping: panel?.changed ? panel.mapping : null });
    }, 's-primary', { 'data-testid': 'import-go' });
    const bar = h('div', { class: 's-lens' }, labelled('Name of the dataset', name),
      found.hub && [labelled('Subset', subset), labelled('Split', split)], go);
    let panel = null;
    if (found.hub) {
      this.looked.replaceChildren(h('p', { class: 's-quiet' }, `${path} can only be a dataset of the hub: it is `
        + 'downloaded by the import. Its mapping can be corrected afterwards.'), bar);
      return;
    }
    panel = new Mapping(this.page, path, { found, heard: () => this.fail('') });
    const before = found.same_name[0];
    this.looked.replaceChildren(bar, before ? h('p', { class: 's-quiet' },
      `A file of this name was imported before, as ${before}; the same content is recognised.`) : '', panel.element);
  }

  async queue(go, wanted) {
    go.disabled = true;
    try {
      const job = await this.page.submit('/api/data/import', wanted);
      this.say('The import is in the queue; the list on the left shows how far it is.');
      this.page.waiting.get(job.job).failed = (words) => { this.fail(words); go.disabled = false; };
    } catch (error) {
      this.fail(error.message);
      go.disabled = false;
    }
  }
}

const MOST_COLUMNS = 60;
const ROLES = ['system', 'user', 'assistant', 'tool'];

export class Mapping {
  constructor(page, path, { found = null, save = null, heard = null } = {}) {
    Object.assign(this, { page, path, heard, changed: false });
    this.why = h('p', { class: 's-quiet', 'data-testid': 'guess' });
    this.error = h('p', { class: 's-error', role: 'alert', hidden: true, 'data-testid': 'mapping-error' });
    this.controls = h('div', { class: 's-stack' });
    this.preview = h('div', { class: 's-preview', 'data-testid': 'preview' });
    this.element = h('div', { class: 's-mapping' },
      h('div', { class: 's-stack' }, this.why, this.controls, this.error, save),
      h('div', { class: 's-stack' }, h('h3', {}, 'The first rows'), this.preview));
    if (found) this.take(found, true);
  }

  /** Ask again: with the mapping as it is now, or for the guess of another format. */
  look(format = '') {
    this.heard?.();
    return this.asking = this.ask(format);
  }

  async ask(format) {
    const asked = this.asked = {};
    const body = { path: this.path, format, mapping: format || !this.mapping ? null : this.mapping };
    try {
      const found = await api('/api/data/look', body);
      if (asked === this.asked) this.take(found, !body.mapping);
    } catch (error) { if (asked === this.asked) this.fail(error.message); }
  }

  fail(words) {
    text(this.error, words);
    this.error.hidden = !words;
  }

  /** Whether it cannot be used as it is; the person is then led to where the reason and the cure are. */
  async refused() {
    await this.asking;
    if (this.error.hidden) return false;
    this.error.scrollIntoView({ block: 'center' });
    this.controls.querySelector('.s-columns select')?.focus({ preventScroll: true });
    return true;
  }

  take(found, redraw) {
    this.fail(found.problem);
    this.mapping = found.mapping;
    this.columns = found.columns;
    text(this.why, found.problem ? 'Say what the columns are:' : found.reason === 'by hand' ? 'Corrected by hand.'
      : `${found.sure ? 'Recognised' : 'Guessed'} as ${found.mapping.format.replace('_', ' ')}: ${found.reason}.`);
    this.why.classList.toggle('s-warning', !found.sure);
    if (redraw) this.draw();
    this.preview.replaceChildren(...found.rows.map(renderedRow));
  }

  change(edit) {
    this.changed = true;
    const mapping = structuredClone(this.mapping);
    edit(mapping);
    this.mapping = mapping;
    this.look();
  }

  parts() {
    const { needed, optional } = this.page.formats[this.mapping.format];
    return [...needed, ...optional];
  }

  draw() {
    const { mapping } = this;
    const format = h('select', { 'data-testid': 'format', onchange: (event) => {
      this.changed = true;
      this.look(event.target.value);
    } }, options(Object.keys(this.page.formats).map((name) => [name, name.replace('_', ' ')]), mapping.format));
    const others = this.page.datasets.filter((one) => one.name !== this.path);
    const reuse = others.length ? labelled('Same as in', h('select', { onchange: (event) => this.reuse(event.target.value) },
      options([['', '–'], ...others.map((one) => [one.name])], ''))) : null;
    this.controls.replaceChildren(h('div', { class: 's-lens' }, labelled('The rows are', format), reuse),
      this.columnTable(), this.parts().includes('system') ? this.systemPrompt() : '', this.extras(),
      this.mapping.format === 'messages' || this.mapping.format === 'sharegpt' ? this.roles() : '');
  }

  async reuse(name) {
    if (!name) return;
    const { mapping } = await api(`/api/data/${encodeURIComponent(name)}`);
    this.mapping = mapping;
    this.changed = true;
    this.draw();
    this.look();
  }

  columnTable() {
    const { needed, optional } = this.page.formats[this.mapping.format];
    const used = Object.values(this.mapping.columns);
    const names = [...new Set([...used, ...Object.keys(this.columns ?? {})])].slice(0, MOST_COLUMNS);
    const hidden = Object.keys(this.columns ?? {}).length - names.length;
    return h('table', { class: 's-table s-columns' },
      h('thead', {}, h('tr', {}, ['Column', 'Example', 'Its part'].map((name) => h('th', { scope: 'col' }, name)))),
      h('tbody', {}, names.map((column) => h('tr', {}, h('td', { class: 's-path' }, column),
        h('td', {}, h('span', { class: 's-example' }, this.columns?.[column] ?? '')),
        h('td', {}, h('select', { 'data-testid': `part-${column}`, 'aria-label': `Part of ${column}`,
          onchange: (event) => this.change((mapping) => {
            for (const part in mapping.columns) if (mapping.columns[part] === column) delete mapping.columns[part];
            const part = event.target.value;
            if (!part) return;
            mapping.columns[part] = column;
            delete mapping.templates[part];
            delete mapping.constants[part];
            queueMicrotask(() => this.draw());
          }) },
        options([['', 'not used'], ...needed.map((part) => [part, `${part} *`]), ...optional.map((part) => [part])],
          Object.keys(this.mapping.columns).find((part) => this.mapping.columns[part] === column) ?? '')))))),
      hidden > 0 ? h('caption', {}, `and ${hidden} more columns`) : null);
  }

  systemPrompt() {
    const input = h('input', { placeholder: 'none', 'data-testid': 'system-prompt', oninput: () =>
      this.change((mapping) => {
        if (input.value) {
          mapping.constants.system = input.value;
          delete mapping.columns.system;
          delete mapping.templates.system;
        } else delete mapping.constants.system;
      }) });
    input.value = this.mapping.constants.system ?? '';
    return labelled('System prompt for every row', input);
  }

  /** Parts that are combined from columns, or fixed. */
  extras() {
    const lines = ['templates', 'constants'].flatMap((kind) => Object.keys(this.mapping[kind])
      .filter((part) => kind === 'templates' || part !== 'system').map((part) => this.extra(kind, part)));
    const free = this.parts().filter((part) => !this.mapping.templates[part] && !(part in this.mapping.constants));
    const add = (kind) => this.change((mapping) => {
      const part = free.find((name) => !(name in mapping.columns)) ?? free[0];
      const [first] = Object.keys(this.columns ?? {});
      mapping[kind][part] = kind === 'templates' ? `{${mapping.columns[part] ?? first ?? 'column'}}` : 'text';
      delete mapping.columns[part];
      queueMicrotask(() => this.draw());
    });
    return h('div', { class: 's-stack' }, lines, free.length ? h('div', { class: 's-actions' },
      button('Combine columns', () => add('templates'), '', { title: 'Fill a part from several columns' }),
      button('Fixed text', () => add('constants'), '', { title: 'Give a part the same text in every row' })) : null);
  }

  extra(kind, part) {
    const input = h('input', { 'aria-label': `Text of ${part}`, spellcheck: 'false', 'data-testid': `text-${part}`,
      oninput: () => this.change((mapping) => { mapping[kind][part] = input.value; }) });
    input.value = this.mapping[kind][part];
    return h('div', { class: 's-extra' },
      h('select', { 'aria-label': 'Part', onchange: (event) => this.change((mapping) => {
        mapping[kind][event.target.value] = mapping[kind][part];
        delete mapping[kind][part];
        delete mapping.columns[event.target.value];
        queueMicrotask(() => this.draw());
      }) }, options(this.parts().map((name) => [name]), part)),
      h('span', { class: 's-quiet' }, kind === 'templates' ? 'is' : 'is always'), input,
      button('×', () => this.change((mapping) => {
        delete mapping[kind][part];
        queueMicrotask(() => this.draw());
      }), 's-tool', { 'aria-label': `Remove ${part}` }));
  }

  roles() {
    const known = Object.entries(this.mapping.roles);
    const name = h('input', { placeholder: 'name in the file', 'aria-label': 'Role name in the file' });
    const role = h('select', { 'aria-label': 'Our role' }, options(ROLES.map((one) => [one]), 'user'));
    const redraw = () => queueMicrotask(() => this.draw());
    return h('details', { class: 's-same', open: known.length > 0 }, h('summary', {}, 'Role names of the file'),
      known.map(([from, to]) => h('div', { class: 's-extra' }, h('span', { class: 's-path' }, from),
        h('span', { class: 's-quiet' }, 'means'), h('span', {}, to),
        button('×', () => { this.change((m) => { delete m.roles[from]; }); redraw(); }, 's-tool',
          { 'aria-label': `Remove ${from}` }))),
      h('div', { class: 's-extra' }, name, h('span', { class: 's-quiet' }, 'means'), role, button('Add', () => {
        if (name.value.trim()) { this.change((m) => { m.roles[name.value.trim()] = role.value; }); redraw(); }
      })));
  }
}

function renderedRow(row) {
  const raw = !row.messages && row.text === undefined && !row.problem;
  return h('article', { class: 's-rendered' }, h('header', {}, `line ${row.line}`), rendered(row),
    raw ? null : h('details', { class: 's-same' }, h('summary', {}, 'As it is in the file'),
      h('pre', {}, JSON.stringify(row.row, null, 1))));
}

/** What became of a row: messages, a text, or why it is dropped. */
export function rendered(row) {
  if (row.problem) return h('p', { class: 's-error' }, `Dropped: ${row.problem}`);
  if (!row.messages && row.text === undefined) return h('pre', {}, JSON.stringify(row.row, null, 1));
  if (row.text !== undefined) return h('p', { class: 's-said' }, row.text);
  return h('div', { class: 's-messages' }, row.messages.map((message) => h('div', { 'data-role': message.role },
    h('span', { class: 's-role' }, message.role),
    h('p', { class: 's-said' }, message.content ?? '',
      message.tool_calls ? h('code', {}, JSON.stringify(message.tool_calls)) : null))),
  row.tools?.length ? h('p', { class: 's-quiet' }, `${row.tools.length} tools may be called`) : null);
}
