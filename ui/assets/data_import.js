// Importing: a file of this machine, an upload, a folder or a hub id; looked at first, then queued.

import { api, bytes, button, h, text } from './dom.js';
import { labelled } from './data_lens.js';
import { Mapping } from './data_mapping.js';

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

  /** Send the file as it is, piece by piece; XMLHttpRequest because only it tells how far it is. */
  upload(file) {
    if (!file) return;
    this.looked.replaceChildren();
    const sent = new XMLHttpRequest();
    sent.open('POST', `/api/data/upload?name=${encodeURIComponent(file.name.slice(-120))}`);
    sent.upload.onprogress = (event) => this.say(`Uploading ${file.name}: ${bytes(event.loaded)} of ${bytes(file.size)}`,
      event.loaded / Math.max(1, file.size));
    sent.onerror = () => this.fail('The upload broke off. Is the studio still running?');
    sent.onload = () => {
      const answer = JSON.parse(sent.responseText || '{}');
      if (sent.status !== 200) return this.fail(answer.error?.text ?? `The studio answered ${sent.status}.`);
      this.path.value = answer.path;
      this.uploaded = true;
      this.look(file.name);
    };
    sent.send(file);
    this.file.value = '';
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
