// The first start: what this machine has, what the doctor found, and three ways to begin. It stands above the
// form until one is taken; Help in the bar shows the same.

import { button, bytes, dots, go, h, pairs, quiet, send, t } from '../core/dom.js';
import { dialog } from '../core/form.js';
import { openGuide } from './guide.js';

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
