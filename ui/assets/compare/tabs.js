// The other tabs of Compare: past conversations, leaderboard, suites, recipes. The open one is in the
// address.

import { ago, api, button, h, remember, short, sureButton, toast } from '../core/dom.js';
import { dialog } from '../core/form.js';
import { clientName, laneName } from '../core/lanes.js';
import { Suites } from './suites.js';
import { board } from './votes.js';
import { snippet } from '../runs/run_tabs.js';

const VIEWS = [['chat', 'Chat'], ['conversations', 'Conversations'], ['leaderboard', 'Leaderboard'],
  ['suites', 'Suites'], ['recipes', 'Recipes']];

export class Shelf {
  constructor(page) {
    this.page = page;
    this.suites = new Suites(page);
    this.tabs = h('div', { class: 's-tabs', role: 'tablist' }, VIEWS.map(([view, words]) =>
      h('button', { type: 'button', role: 'tab', class: 's-tool', 'data-view': view,
        onclick: () => this.open(view) }, words)));
    this.element = h('section', { class: 's-shelf', hidden: true, 'data-testid': 'shelf' });
  }

  async open(view) {
    this.view = VIEWS.some(([name]) => name === view) ? view : 'chat';
    const chat = this.view === 'chat', { page } = this;
    for (const tab of this.tabs.children) tab.setAttribute('aria-selected', String(tab.dataset.view === this.view));
    for (const part of [page.heads, page.scroll, page.composer.element]) part.hidden = !chat;
    this.element.hidden = chat;
    page.toggleAttribute('data-shelf', !chat);
    remember({ view: chat ? null : this.view });
    if (chat) { page.toEnd(); page.composer.focus(); return; }
    this.element.replaceChildren();
    try {
      await { conversations: () => this.conversations(), leaderboard: () => board(this.element),
        suites: () => this.suites.show(this.element),
        recipes: () => recipes(this.element, this.page) }[this.view]();
    } catch (error) { toast(error.message, 'error'); }
  }

  /** A recipe was kept while its list may be on screen. */
  again() {
    if (this.view === 'recipes') this.open('recipes');
  }

  async conversations() {
    const search = h('input', { type: 'search', placeholder: 'Search prompts and answers …',
      'aria-label': 'Search conversations', oninput: () => {
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.list(list, search.value), 200);
      } });
    const list = h('ul', { class: 's-talks', 'data-testid': 'conversations' });
    this.element.replaceChildren(h('div', { class: 's-shelf-head' }, h('h2', {}, 'Conversations'), search), list);
    await this.list(list, '');
  }

  async list(list, words) {
    const found = await api(`/api/chat/conversations?search=${encodeURIComponent(words)}`);
    list.replaceChildren(...(found.length ? found.map((talk) => this.item(talk, list, words))
      : [h('li', { class: 's-quiet' }, words ? `Nothing has “${words}” in it.`
        : 'What you ask here is kept, and found again here.')]));
  }

  item(talk, list, words) {
    const lanes = talk.lanes.map(laneName).join('  ·  ');
    return h('li', {}, h('a', { href: `/compare?chat=${talk.id}` }, h('b', {}, talk.title || '(no title)'),
      h('span', { class: 's-quiet' }, lanes)),
    h('span', { class: 's-quiet' }, `${talk.turns} ${talk.turns === 1 ? 'turn' : 'turns'} · ${ago(talk.updated)}`
      + (talk.parent ? ' · a branch' : '')),
    sureButton('Delete', 'Really delete?', async () => {
      if (talk.id === this.page.talk.id && !this.page.free()) return;
      try { await api('/api/chat/conversations/delete', { id: talk.id }); await this.list(list, words); }
      catch (error) { toast(error.message, 'error'); }
    }, 's-tool'));
  }
}

export async function recipes(element, page) {
  const list = h('ul', { class: 's-talks', 'data-testid': 'recipes' });
  const intro = h('p', { class: 's-quiet' }, 'A recipe is a base with weighted adapters. “Keep mix” in a lane '
    + 'makes one; every lane on the same base can take it.');
  element.replaceChildren(h('div', { class: 's-shelf-head' }, h('h2', {}, 'Recipes')), intro, list);
  const refresh = async () => {
    page.choices = await api('/api/chat/choices');
    const found = page.choices.recipes;
    list.replaceChildren(...(found.length ? found.map((one) => item(one, page, refresh))
      : [h('li', { class: 's-quiet' }, 'None yet. Move the sliders of a lane until it is right, then keep the mix.')]));
  };
  await refresh();
}

function item(recipe, page, refresh) {
  const act = async (path, body, said) => {
    try {
      const made = await api(path, body);
      toast(said(made));
      await refresh();
    } catch (error) { toast(error.message, 'error'); }
  };
  const make = (kind) => act('/api/chat/recipes', { kind, name: recipe.name, model: recipe.model,
    stack: recipe.stack }, (made) => `Queued as “${made.name}”; Runs shows how it goes.`);
  return h('li', {}, h('div', { class: 's-recipe' }, h('b', {}, recipe.name),
    h('span', { class: 's-quiet s-recipe-parts' }, short(recipe.model), recipe.stack.map(({ name, weight }) =>
      h('span', {}, h('b', {}, short(name)), ` × ${weight}`)))),
  h('span', { class: 's-grow' }), h('span', { class: 's-quiet' }, ago(recipe.created)),
  button('Into a lane', () => page.take(recipe), '', { title: 'Add a lane with this mix to the chat' }),
  button('Make an adapter', () => make('mix'), '', { title: 'One LoRA that acts like the mix' }),
  button('Merge', () => make('merge'), '', { title: 'A whole model, with a certificate' }),
  sureButton('Delete', 'Really delete?', () => act('/api/chat/recipes/delete', { name: recipe.name },
    () => `“${recipe.name}” is forgotten.`), 's-tool'));
}

export function askElsewhere(lanes) {
  const names = lanes.map(clientName);
  dialog('Use these lanes elsewhere', [h('p', { class: 's-quiet' }, 'Editors, scripts and other chat programs on '
    + 'this machine can talk to any lane over an OpenAI-compatible address. This command prints the address '
    + 'and its key:'), snippet('In a terminal', 'studio endpoint'),
  snippet('Names of these lanes, as “model”', names.join('\n'))]);
}

export function welcome(page) {
  const tuned = page.talk.lanes.some((lane) => lane.stack.length);
  return h('div', { class: 's-welcome' },
    h('h2', {}, 'One prompt, every lane answers'),
    h('p', {}, tuned ? 'Same prompt, same seed, side by side: what you see is what the adapter changed.'
      : 'Only the base is here so far. Train an adapter, or add a lane, to see a difference.'),
    h('div', { class: 's-prompts' }, page.choices.prompts.slice(0, 6).map((prompt) =>
      button(prompt, () => page.send(prompt), 's-chip'))),
    tuned ? '' : h('a', { class: 's-button', href: '/' }, 'Train an adapter'));
}
