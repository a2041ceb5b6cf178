// The other tabs of Compare: past conversations, leaderboard, suites, recipes. The open one is in the
// address.

import { keepMix, KEPT } from '../adapters/actions.js';
import { ago, button, choose, dots, h, newest, query, quiet, redraw, remember, send, short, snippet, sureButton, t,
  tabs } from '../core/dom.js';
import { dialog, searchField } from '../core/form.js';
import { clientName, laneName } from '../core/lanes.js';
import { Suites } from './suites.js';
import { leaderboard, makeDataset } from './votes.js';

const TABS = [['chat', t`Chat`], ['conversations', t`Conversations`], ['leaderboard', t`Leaderboard`],
  ['suites', t`Suites`], ['recipes', t`Recipes`]];

export class Tabs {
  constructor(page) {
    this.page = page;
    this.suites = new Suites(page);
    this.tabs = tabs(TABS, (tab) => { remember({ view: tab === 'chat' ? null : tab }, true); this.open(tab); },
      { class: 's-tool' });
    addEventListener('popstate', () => {
      this.open(query().get('view') ?? 'chat');
      page.address(); // Back changes the tab, not the lanes and the chat
    });
    this.element = h('section.s-compare-tab', { hidden: true, testid: 'compare-tab' });
  }

  async open(name) {
    this.tab = TABS.some(([tab]) => tab === name) ? name : 'chat';
    const chat = this.tab === 'chat', { page } = this;
    choose(this.tabs, this.tab);
    for (const part of [page.heads, page.scroll, page.composer.element]) part.hidden = !chat;
    this.element.hidden = chat;
    page.toggleAttribute('data-tab', !chat);
    page.tint();
    remember({ view: chat ? null : this.tab });
    if (chat) { page.toEnd(); page.composer.focus(); return; }
    redraw(this.element);
    await { conversations, leaderboard, suites: () => this.suites.show(this.element), recipes }[this.tab](this.element,
      page);
  }

  /** A recipe was saved while their list may be on screen. */
  refresh() {
    if (this.tab === 'recipes') this.open('recipes');
  }
}

async function conversations(element, page) {
  let timer = 0;
  const list = h('ul.s-talks', { testid: 'conversations' });
  const search = searchField(t`Search prompts and answers …`, () => {
    clearTimeout(timer);
    timer = setTimeout(refresh, 200);
  });
  const item = ({ id, title, lanes, turns, updated, parent }) => h('li', h('a', { href: `/compare?chat=${id}` },
    h('b', title || t`(no title)`), h('span.s-quiet', lanes.map(laneName).join('  ·  '))),
  h('span.s-quiet', dots(t`${turns} turn${turns === 1 ? '' : 's'}`,
    ago(updated), parent && t`a branch`)),
  sureButton(t`Delete`, t`Really delete?`, async () => {
    if (id === page.conversation.id && !page.free()) return;
    if (!await send('/api/do/conversations', { delete: id })) return;
    if (id === page.conversation.id) page.restart();
    await refresh();
  }, 's-tool'));
  const refresh = async () => {
    const all = await newest(list, send('/api/do/conversations', { search: search.value }));
    const found = all?.filter((one) => one.turns);
    if (found) redraw(list, ...(found.length ? found.map(item) : [h('li.s-quiet',
      search.value ? t`No conversation contains “${search.value}”.` : t`Conversations are saved here.`)]));
  };
  element.replaceChildren(h('div.s-tab-head', h('h2', t`Conversations`), search,
    h('span.s-grow'), button(t`Make a dataset …`, () => makeDataset({ kind: 'answers', unvoted: true,
      search: search.value }))), list);
  await refresh();
}

async function recipes(element, page) {
  const list = h('ul.s-talks', { testid: 'recipes' });
  const refresh = async () => {
    page.choices = await send('/api/chat/choices') ?? page.choices;
    const found = page.choices.recipes;
    redraw(list, ...(found.length ? found.map((one) => recipe(one, page, refresh)) : [h('li.s-quiet',
      t`None yet. Adjust the sliders of a lane, then press “Keep mix”.`)]));
  };
  element.replaceChildren(h('div.s-tab-head', h('h2', t`Recipes`)),
    quiet(t`A recipe is a base with weighted adapters, saved with “Keep mix” in a lane.`), list);
  await refresh();
}

function recipe({ name, model, stack, created }, page, refresh) {
  const make = (kind) => keepMix(kind, { model, stack, name }, refresh);
  return h('li', h('div', h('b', name),
    h('span.s-quiet.s-recipe-parts', short(model), stack.map((part) =>
      h('span', h('b', short(part.name)), ` × ${part.weight}`)))),
  h('span.s-grow'), h('span.s-quiet', ago(created)),
  button(t`Into a lane`, () => page.take({ model, stack }), '', { title: t`Add a lane with this mix to the chat` }),
  button(KEPT.mix, () => make('mix')), button(KEPT.merge, () => make('merge')),
  sureButton(t`Delete`, t`Really delete?`, () => send('/api/do/recipes', { delete: name },
    t`“${name}” is deleted.`).then(refresh), 's-tool'));
}

/** How other programs on this machine reach the lanes of the page over the OpenAI-compatible address.
 *  Its key is shown by a command of this user only, never by a page. */
export function showEndpoint(lanes) {
  dialog(t`Use these lanes elsewhere`,
    [quiet(t`Editors, scripts and other chat programs on this machine can use any lane
    over an OpenAI-compatible address. This command prints the address and its key:`),
  snippet(t`In a terminal`, 'studio endpoint'),
  snippet(t`Names of these lanes, as “model”`, lanes.map(clientName).join('\n'))]);
}

/** The run of this home that made the last lane's adapter, checkpoint or model. */
export function runOf(lanes, adapters) {
  const { model, stack } = lanes.at(-1), name = stack.at(-1)?.name ?? model;
  return adapters.find((one) => one.name === name)?.run || /(?:^|runs.)(\d+)(?:@\d+|.adapter)$/.exec(name)?.[1];
}

/** Shown before the first turn: prompts to begin with, of the run's dataset where that is known. */
export function welcome(page) {
  const tuned = page.conversation.lanes.some((lane) => lane.stack.length);
  const asks = (some, words) => some.length > 0 && [words && quiet(words), h('div.s-prompts', some.map(({ prompt,
    wanted }) => button(prompt, () => page.send(prompt), 's-chip', { title: wanted && t`Wanted: ${wanted}` })))];
  const { questions } = page;
  return h('div.s-welcome',
    h('h2', t`One prompt, answered by every lane`),
    h('p', tuned ? t`Same prompt, same seed, side by side: the difference is what the adapter changed.`
      : t`This lane has no adapter. Add a lane with another model or adapter to see a difference.`),
    asks(questions.filter((one) => !one.trained), t`Held-out questions of its dataset`),
    asks(questions.filter((one) => one.trained), t`Questions of its dataset, trained on`),
    !questions.length && asks(page.choices.prompts.slice(0, 6).map((prompt) => ({ prompt }))),
    tuned ? '' : h('a.s-button', { href: '/' }, t`Train an adapter`));
}
