// The Data page: datasets on the left, the selected one (or the import) on the right. Long work is a
// queued job; this tab follows the ones it submitted. The address holds the selection.

import { ago, api, badge, button, bytes, choose, count, dots, figures, h, keyed, menu, newest, Page, query, quiet,
  redraw, remember, send, short, sureButton, t, tabs, toast, when, word } from '../core/dom.js';
import { askAction, matcher, searchField, showDeleted, weighted } from '../core/form.js';
import { trainWith } from '../core/lanes.js';
import { isOpen, poke, rowLines, showJobs, subscribe } from '../core/live.js';
import { Import, Mapping } from './import.js';
import { Report } from './report.js';
import { Change, Rows } from './rows.js';
import { Lens, XRay } from './xray.js';

const KINDS = new Set(['import', 'curate', 'mix_data', 'measure']);
const TABS = { report: t`Report`, xray: t`X-ray`, rows: t`Rows`, mapping: t`Mapping`, change: t`Change` };

export class Data extends Page {
  build() {
    this.name = query().get('name');
    this.tab = query().get('tab') in TABS ? query().get('tab') : 'report';
    Object.assign(this, { datasets: [], trash: [] });
    this.waiting = new Map(); // job id -> what to do with its outcome
    this.acts = 0; // of the user on what is open
    this.draw();
    const uploaded = query().get('import'); // on another page
    this.refresh().then(() => this.open(this.name)).then(() => {
      if (!uploaded || !this.importing) return;
      if (uploaded === sessionStorage.getItem('studio.uploaded')) this.importing.open(uploaded, short(uploaded), true);
      else this.importing.path.value = uploaded; // a link from elsewhere has nothing read
    });
    addEventListener('popstate', () => this.open(query().get('name'), query().get('tab') ?? 'report'));
    subscribe({ element: this, onJobs: (jobs) => this.take(jobs),
      onEnded: (jobs) => { if (jobs.some(({ kind }) => KINDS.has(kind))) this.refresh(); } });
  }

  draw() {
    this.search = searchField(t`Search datasets`, () => this.list());
    this.rows = h('ol.s-rows', { testid: 'datasets' });
    this.jobs = h('ol.s-activity', { label: t`Work on datasets` });
    this.none = quiet(t`No dataset is imported yet.`);
    this.bin = h('details.s-bin', { hidden: true });
    this.main = h('div.s-main', { oninput: () => { this.acts += 1; } });
    this.append(this.jobs, h('div.s-runs.s-data',
      h('aside.s-list',
        h('div.s-list-head',
          button(t`Import a dataset`, async () => {
            await this.open(null);
            this.main.querySelector('input[type=text], input:not([type])')?.focus();
          }, 's-primary'), button(t`Mix …`, () => this.askMix(), '',
            { title: t`Several datasets by weight as one` }),
          this.search),
        this.rows, this.none, this.bin),
      this.main));
  }

  async refresh() {
    Object.assign(this, await newest(this, send('/api/data')));
    this.list();
  }

  list() {
    const matches = matcher(this.search.value);
    const shown = this.datasets.filter((one) => matches(one.name, one.format, one.hash, one.original.name));
    this.none.hidden = this.datasets.length > 0;
    this.search.hidden = this.datasets.length < 6;
    showDeleted(this.bin, this.trash, (one) => this.undo(one));
    keyed(this.rows, shown, (one) => one.name, (one) => this.row(one), (node, one) => {
      node.toggleAttribute('data-focus', one.name === this.name);
      node.firstChild.ariaCurrent = one.name === this.name;
    });
  }

  row(one) {
    return h('li', h('button.s-row-open', {
      testid: `dataset-${one.name}`, onclick: () => this.open(one.name) },
      rowLines(one.name, h('span.s-quiet', ago(Date.parse(one.created) / 1000)), dots(t`${count(one.rows)} rows`,
        one.format.replace('_', ' '), one.parent ? t`${one.step.kind} of ${one.parent}` : one.original.name),
      bytes(one.bytes))));
  }

  askMix() {
    const known = [...this.datasets.map(({ name }) => ({ name, path: name })),
      ...this.demos.map((name) => ({ name: t`Demo · ${name}`, path: `starter:${name}` }))];
    const field = weighted(known, known.slice(0, 2), t`Datasets and their weights`, t`Dataset`,
      { min: 0 });
    const sources = { element: field.element, value: () => field.value().map((one) => `${one.name}:${one.weight}`) };
    return askAction('data.mix', { nodes: { sources }, done: (job) => this.openResult(job) });
  }

  /** Show a dataset, or the import where there is no name. */
  async open(name, tab = this.tab) {
    const other = name !== this.name;
    Object.assign(this, { name, tab, acts: this.acts + 1 });
    remember({ name, tab: name && tab !== 'report' ? tab : null, import: null,
      ...(other ? { row: null } : {}) }, other);
    this.list();
    if (!this.datasets.some((one) => one.name === name)) {
      const gone = name && h('p.s-error', { role: 'alert' },
        t`There is no dataset “${name}”: it was renamed or deleted.`);
      this.importing = new Import(this);
      redraw(this.main, ...[gone, this.importing.element].filter(Boolean));
      return;
    }
    try {
      const found = await api(`/api/data/${encodeURIComponent(name)}`);
      if (name === this.name) this.show(found);
    } catch (error) {
      if (name === this.name) redraw(this.main, h('p.s-error', { role: 'alert' }, error.message));
    }
  }

  show(found) {
    this.found = found;
    this.lens ??= new Lens(this.settings, this.models, () => this.fill());
    this.tabs = tabs(Object.entries(TABS), (id) => {
      this.tab = id;
      remember({ tab: id === 'report' ? null : id });
      this.fill();
    });
    this.panel = h('div.s-data-panel', { role: 'tabpanel', testid: 'data-panel' });
    redraw(this.main, this.head(found), h('section.s-panels', this.tabs, this.panel));
    this.fill();
  }

  fill() {
    this.acts += 1;
    choose(this.tabs, this.tab);
    const Panel = { report: Report, xray: XRay, rows: Rows, mapping: Remap, change: Change }[this.tab];
    redraw(this.panel, ...(['report', 'xray'].includes(this.tab) ? [this.lens.element] : []),
      new Panel(this).element);
  }

  head(found) {
    const made = Date.parse(found.created) / 1000;
    const parts = found.validation_rows ? ['', 'train', 'validation'] : [''];
    const exports = menu(t`Export`, ['jsonl', 'csv'].flatMap((form) => parts.map((part) => h('a', { download: '',
      href: `/api/data/${found.name}/export?format=${form}&part=${part}` },
    part ? t`${word(part)} rows as ${form}` : t`all rows as ${form}`))));
    return h('section.s-detail',
      h('div.s-detail-head', h('h1', found.name), badge('queued', found.format.replace('_', ' ')),
        h('div.s-actions',
          h('a.s-button.s-primary', { testid: 'train-on-this', href: trainWith([`data.path=${found.name}`,
            ...(LOSS[found.format] ?? [])], OF_PAIRS) }, t`Train on this`),
          exports,
          sureButton(t`Delete`, found.runs.length ? t`Delete what runs used?` : t`Really delete?`,
            () => this.remove(found.name)))),
      h('p.s-meta', t`from `, dots(found.original.name, found.original.container, found.original.encoding),
        t` · read as ${found.format.replace('_', ' ')}: ${found.reason}`),
      this.family(found),
      found.runs.length > 0 && h('p.s-meta', t`Trained on it: `, found.runs.flatMap(({ id, name }, at) =>
        [at ? ', ' : '', h('a', { href: `/runs?run=${id}` }, name)])),
      figures([
        [t`Rows`, count(found.findings.rows.read)], [t`Size`, bytes(found.bytes)],
        [t`Imported`, ago(made), '', { title: when(made) }],
        [t`Hash`, found.hash.slice(0, 12), '', { title: found.hash }],
      ]));
  }

  family(found) {
    if (!found.step && !found.children.length) return null;
    const here = this.datasets.some((one) => one.name === found.parent);
    return h('p.s-meta', { testid: 'family' },
      found.step && (found.parent ? t`${step(found.step)}, made of ` : step(found.step)),
      found.parent && (here ? this.link(found.parent) : t`${found.parent} (deleted)`),
      found.step && found.children.length > 0 && ' · ', found.children.length > 0 && t`led to `,
      found.children.flatMap((name, at) => [at ? ', ' : '', this.link(name)]));
  }

  link(name, words = name, tab = this.tab) {
    return h('a', { href: `/data?name=${name}`, onclick: (event) => {
      event.preventDefault();
      this.open(name, tab);
    } }, words);
  }

  async remove(name) {
    if (!await send('/api/do/data.delete', { name }, t`${name} is deleted.`)) return;
    this.open(null);
    await this.refresh();
  }

  async undo(dataset) {
    const { name } = await api('/api/do/data.undo', { dataset });
    await this.refresh();
    this.open(name);
  }

  /** Open the dataset that a queued job makes, or link to it if the user has gone on by then. */
  openResult(job, failed) {
    const { acts } = this;
    this.await(job, async ({ name, already, parent, asked }) => {
      if (already && !parent) toast(t`This file was imported before, as ${name}.`);
      else if (!already && asked && asked !== name) {
        toast(name.startsWith(`${asked}-`) ? t`Its name is ${name}: ${asked} was taken.`
          : t`Its name is ${name}: lower-case letters, digits, dashes.`);
      }
      await this.refresh();
      if (acts === this.acts) this.open(name, 'report');
      else toast(this.link(name, t`${name} is ready.`, 'report'));
    }, failed);
  }

  await(job, then, failed) {
    this.waiting.set(job.id, { then, failed });
    if (this.known) this.take(this.known); // it may have ended already
    poke();
  }

  take(jobs) {
    this.known = jobs;
    const ours = jobs.filter((job) => KINDS.has(job.kind));
    showJobs(this.jobs, ours.filter(({ state }) => state !== 'failed'));
    for (const job of ours) {
      if (isOpen(job) || !this.waiting.has(job.id)) continue;
      const { then, failed } = this.waiting.get(job.id);
      this.waiting.delete(job.id);
      this.ended(job, then, failed);
    }
  }

  async ended(job, then, failed) {
    const done = await send(`/api/outcome/${job.id}`);
    if (done?.state === 'succeeded') return then(done.outcome);
    const words = job.error?.text ?? t`"${job.name}" was ${word(job.state)}.`;
    return failed ? failed(words) : toast(words, 'error');
  }
}

/** Read the columns of an imported dataset differently: a new snapshot. */
class Remap {
  constructor(page) {
    const { found } = page;
    const panel = new Mapping(page, found.name, { save: h('div.s-actions',
      button(t`Save as a new dataset`, async () => page.openResult(await api('/api/do/data.map',
        { source: found.name, whole: panel.mapping, save: true })), 's-primary')) });
    this.element = panel.element;
    panel.look();
  }
}

/** The loss that learns from all that rows of a format say, and those that other rows cannot be trained with. */
const LOSS = { preference: ['train.loss=dpo'], scored: ['train.loss=dpo'], judged: ['train.loss=kto'] };
const OF_PAIRS = /^train\.loss=(?!sft|grpo)/;

const NAMES = { part: t`Taken in part`, filter: t`Filtered`, dedupe: t`Deduplicated`, split: t`Split`,
  drop: t`Rows dropped`, remap: t`Remapped` };

/** A step in words: "Split (20 rows, seed 0)". */
function step(values) {
  if (values.kind === 'mix') {
    const parts = values.sources.map((one) => t`${one.name} (${count(one.rows)} of ${count(one.of)} rows)`);
    return t`Mixed of ${parts.join(', ')}`;
  }
  const parts = Object.entries(values).filter(([name, value]) =>
    name !== 'kind' && name !== 'mapping' && value !== '' && value !== 0 && value !== false
    && !(name === 'operator' && !values.column))
    .map(([name, value]) => `${name.replaceAll('_', ' ')} ${Array.isArray(value)
      ? value.length > 5 ? t`${value.length} numbers` : value.join(', ') : value === true ? '' : value}`.trim());
  return `${NAMES[values.kind]}${parts.length ? ` (${parts.join(', ')})` : ''}`;
}

customElements.define('studio-data', Data);
