// The views of Compare beside the chat: past conversations, the leaderboard, suites, recipes. The one
// that is open is in the address.

import { ago, api, button, h, remember, sureButton, toast } from './dom.js';
import { laneName } from './lane.js';
import { board } from './board.js';
import { recipes } from './recipes.js';
import { Suites } from './suites.js';

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
