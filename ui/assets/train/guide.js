// The first start (what this machine has, what the doctor found, three ways to begin; Help shows the same), and
// the guided start: from what a user wants to data, a model that fits and settings with their reasons. It fills
// the ordinary form of the Train page, where all of it can be changed.

import { api, button, bytes, compact, count, dots, duration, go, h, newest, pairs, quiet, redraw, send, t, table, text
  } from '../core/dom.js';
import { dialog, labelled, select } from '../core/form.js';
import { Upload } from '../core/upload.js';

const KEYS = [['Ctrl Enter', t`Train`], ['Alt ↑ ↓ Home', t`Move a waiting run`],
  ['Tab', t`From the top: skip to the page`]];

const PIRATE = 'set=model.path=starter&set=data.path=starter:pirate';

/** A finding as sentence and command. */
export function findingParts(words) {
  const [sentence, command] = words.split(' Run: ');
  return { sentence, command: command ?? '' };
}

/** The machine in one line, and the doctor's findings. */
function machine({ device, disk_bytes: disk, findings }) {
  return [h('p', { testid: 'machine' }, dots(`${device.label} (${device.name})`,
    t`${bytes(device.free_bytes)} of ${bytes(device.total_bytes)} memory free`, disk && t`${bytes(disk)} disk free`)),
  findings.length > 0 && h('ul.s-findings', findings.map(({ kind, text }) => {
    const { sentence, command } = findingParts(text);
    return h('li', { 'data-kind': kind }, sentence, command && h('code', command));
  }))];
}

const doors = (train, taken) => h('div.s-doors', [
  [t`Try it in ten seconds`, t`The embedded starter learns to talk like a pirate.`, train],
  [t`With my data`, t`From what you want to settings, with a reason for each.`, openGuide],
  [t`With my model`, t`Choose or download one that fits on this machine.`, () => go('/models')],
].map(([title, words, act]) => {
  const node = button('', () => { taken(); return act(); }, 's-door');
  node.append(h('b', title), h('span.s-quiet', words));
  return node;
}));

export class Welcome {
  constructor(page) {
    this.page = page;
    this.element = h('section.s-card.s-first', { hidden: true, testid: 'welcome' });
  }

  async open() {
    const found = await send('/api/do/welcome', {});
    if (!found?.first) return;
    this.element.append(h('header.s-row-between', h('h2', t`Welcome`),
      button(t`Close`, () => this.done(), 's-tool')), ...machine(found).filter(Boolean),
    doors(() => this.page.start(), () => this.done()));
    this.element.hidden = false;
  }

  done() {
    this.hide();
    return send('/api/do/welcome', { done: true });
  }

  hide() { this.element.hidden = true; }
}

/** The dialog behind the question mark of the bar. */
export async function openHelp() {
  const found = await send('/api/do/welcome', {});
  if (!found) return;
  let node = null;
  const start = async () => {
    const page = document.querySelector('studio-train');
    if (!page) return go(`/?${PIRATE}`);
    await page.open({ address: PIRATE });
    return page.start();
  };
  node = dialog(t`Help`, h('div.s-first', machine(found), doors(start, () => node.close()),
    h('details', h('summary', t`What the words mean`), h('div.s-first', found.glossary.map(({ term, means }) =>
      h('p', h('b', term), ': ', means)))),
    h('h3', t`Keys`), pairs(KEYS.map(([keys, words]) => [h('kbd', keys), words])),
    quiet(t`In a terminal: `, h('code', 'studio --help'), t` lists the commands, `, h('code', 'studio doctor'),
      t` examines this machine.`)), t`Close`);
}

// -- guided start --

const FORMATS = [['xlsx', 'Excel'], ['csv', 'CSV'], ['jsonl', 'JSON lines']];
const NONE = ['', t`Choose a dataset, or upload a file`];

/** Open the guided start; on other pages than Train it leads there. */
export async function openGuide() {
  const form = await send('/api/train/form', {});
  if (form) new Guide(form.choices['data.path']).open();
}

/** A model as the list writes it. */
export const modelWords = (one) => `${one.name}${one.here ? '' : ` · ${dots(
  one.parameters && t`${compact(one.parameters)} parameters`, t`to download`, one.gated && t`gated`)}`}${
  one.suggested ? t` · suggested` : ''}`;

/** Minutes and steps of an estimate in words, or why they are not known. */
export function planWords({ unknown, error, seconds, total_steps: steps, device, total_bytes: size, fits }) {
  if (unknown || error) return unknown ?? error.text;
  return t`About ${duration(seconds)} for ${count(steps)} steps on ${device}, with ${bytes(size)} of memory.`
    + (fits === false ? t` This does not fit: choose a smaller model, or “Make it fit” in the form.` : '');
}

class Guide {
  constructor(datasets) {
    this.goals = h('fieldset.s-goals', h('legend', t`What do you want?`));
    this.needs = h('p');
    this.example = h('div.s-guide-example');
    this.files = h('p.s-actions', h('span.s-quiet', t`A file to fill in:`),
      FORMATS.map(([format, title]) => button(title, () => this.download(format), 's-tool')));
    this.data = select([NONE, ...datasets], '', () => this.ask(), { testid: 'guide-data' });
    this.upload = new Upload((name) => this.use(name), 'guide');
    this.checked = h('p', { role: 'status', testid: 'guide-checked' });
    this.model = select([], '', () => this.ask(), { testid: 'guide-model' });
    this.about = quiet();
    this.settings = h('div', { testid: 'guide-settings' });
    this.plan = h('p', { role: 'status', testid: 'guide-plan' });
  }

  async open() {
    this.ask();
    await this.asking;
    const part = (title, ...inside) => h('section', h('h3', title), inside);
    this.node = dialog(t`Guided start`, h('div.s-guide', this.goals,
      part(t`Data`, this.needs, this.example, this.files, labelled(t`Dataset`, this.data), this.upload.element,
        this.upload.line, this.checked),
      part(t`Model`, labelled(t`A model that fits on this machine`, this.model), this.about),
      part(t`Settings`, this.settings), part(t`Plan`, this.plan)), t`Fill the form`, () => this.fill());
    this.node.classList.add('s-wide-dialog');
    this.goals.querySelector(':checked').focus();
  }

  goal() { return this.goals.querySelector(':checked')?.value ?? 'voice'; }

  async ask() {
    this.asking = newest(this, api('/api/do/guide', { goal: this.goal(), data: this.data.value,
      model: this.model.value }));
    try {
      const found = await this.asking;
      if (!found) return;
      this.show(found);
      const plan = await newest(this, this.data.value ? api('/api/train/estimate', { set: found.set })
        : { unknown: t`Choose the data to see how long it takes.` });
      if (plan) text(this.plan, planWords(plan));
    } catch (error) { text(this.plan, error.message); }
  }

  show({ goals, goal, data, models, model, settings, note }) {
    if (this.goals.children.length === 1) {
      this.goals.append(...goals.map((one) => h('label.s-goal', h('input', { type: 'radio', name: 'goal',
        value: one.name, checked: one.name === goal.name, onchange: () => this.ask() }),
      h('span', h('b', one.title), h('span.s-quiet', one.about)))));
    }
    const [least, usual, most] = goal.rows.map(count);
    text(this.needs, t`${goal.needs} Usual are ${usual} rows; ${least} are the least, more than ${most} rarely help.`);
    redraw(this.example, table(goal.columns, goal.examples.slice(0, 2).map((row) => Object.values(row))));
    text(this.checked, data.text);
    this.checked.className = data.ok === false ? 's-error' : 's-quiet';
    const own = models.some(({ path }) => path === model) ? [] : [{ path: model, name: model, here: true }];
    redraw(this.model, ...[...models, ...own].map((one) => h('option', { value: one.path,
      selected: one.path === model, title: one.what ?? '' }, modelWords(one))));
    text(this.about, dots(models.find(({ path }) => path === model)?.what, note));
    redraw(this.settings, table([t`Setting`, t`Value`, t`Why`], settings.map(({ title, shown, reason }) =>
      [title, shown, reason])), quiet(t`All other settings keep their defaults.`));
  }

  use(name) {
    if (![...this.data.options].some(({ value }) => value === name)) this.data.add(h('option', { value: name }, name));
    this.data.value = name;
    this.ask();
  }

  async download(format) {
    const { name, base64 } = await api('/api/do/guide.template', { goal: this.goal(), format });
    const link = h('a', { download: name });
    link.href = `data:application/octet-stream;base64,${base64}`;
    link.click();
  }

  async fill() {
    const found = await this.asking, page = document.querySelector('studio-train');
    if (!found) return this.fill(); // something else was chosen meanwhile
    const { set, data } = found;
    if (!this.data.value) throw new Error(t`Choose a dataset, or upload a file, first.`);
    if (data.ok === false) throw new Error(t`Choose data that fit the goal first, or another goal.`);
    const query = new URLSearchParams(set.map((one) => ['set', one])).toString();
    send('/api/do/welcome', { done: true });
    if (!page) return go(`/?${query}`);
    page.welcome.hide();
    return page.open({ address: query });
  }
}
