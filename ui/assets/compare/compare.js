// The Compare page: up to six lanes, one composer. A turn is a row: the prompt once, the answers side
// by side, streaming together from one resident base. Lanes and view are in the address, the
// conversation in the database, so a reload restores both. Model output is shown as text only.

import { api, button, h, query, remember, toast } from '../core/dom.js';
import { laneName, parseLane, writeLane } from '../core/lanes.js';
import { Cell } from './answer.js';
import { Composer, usualSettings } from './composer.js';
import { Talk } from './conversation.js';
import { LaneHead } from './lane.js';
import { askElsewhere, Shelf, welcome } from './tabs.js';
import { hidden, Votes } from './votes.js';

const MOST_LANES = 6;
export const LETTERS = 'ABCDEF';

export class Compare extends HTMLElement {
  async connectedCallback() {
    if (this.built) return;
    this.built = true;
    this.cells = new Map();
    this.look = { confidence: query().has('confidence'), reference: Number(query().get('from') || NaN) - 1 };
    try {
      this.choices = await api('/api/chat/choices');
    } catch (error) {
      this.choices = { models: [{ label: 'starter', path: 'starter' }], adapters: [], prompts: [],
        recipes: [], sampling: {} };
      toast(error.message, 'error');
    }
    const settings = usualSettings(this.choices.sampling);
    this.talk = new Talk(query().get('chat'), settings, (turn) => this.grew(turn));
    this.build();
    await this.talk.open(query().getAll('lane').slice(0, MOST_LANES).map(parseLane));
    if (!this.talk.lanes.length) this.talk.lanes = this.usualLanes();
    this.root.hidden = false;
    this.show();
    this.shelf.open(query().get('view') ?? 'chat');
    api('/api/chat/warm', {}).catch(() => {}); // the first prompt says what is wrong
  }

  usualLanes() {
    const newest = this.choices.adapters[0];
    const model = newest?.base || this.choices.models[0].path;
    const base = { model, stack: [] };
    return newest ? [base, { model, stack: [{ name: newest.name, weight: 1 }] }] : [base];
  }

  build() {
    this.heads = h('div', { class: 's-lane-heads' });
    this.scroll = h('div', { class: 's-turns', 'data-testid': 'turns' });
    this.votes = new Votes(this);
    this.composer = new Composer(this.choices.sampling, {
      send: (prompt) => this.send(prompt),
      stop: () => this.talk.stop(),
      again: () => this.again(),
      add: () => this.add(),
      letters: () => [...LETTERS].slice(0, this.talk.lanes.length),
      settings: (lane, own) => this.talk.settingsOf(lane, own),
      changed: () => this.moved(),
    });
    this.confidence = button('Confidence', () => this.looked({ confidence: !this.look.confidence }), 's-tool',
      { title: 'Tint each token by how unsure the model was; hover shows the alternatives' });
    this.reference = h('select', { 'aria-label': 'Differences', title: 'Mark what differs, word by word',
      onchange: ({ target: { value } }) => this.looked({ reference: value === '' ? null : Number(value) }) });
    this.blind = button('Blind', () => this.toggleBlind(), 's-tool', { 'data-testid': 'blind',
      title: 'Shuffle the lanes and hide their names until you have voted' });
    this.fresh = button('New chat', () => this.fresh_(), 's-tool', { title: 'Key n' });
    this.serve = button('Use elsewhere', () => askElsewhere(this.talk.lanes), 's-tool',
      { title: 'These lanes in other programs, over an OpenAI-compatible address' });
    this.shelf = new Shelf(this);
    this.root = h('div', { class: 's-compare', hidden: true }, // until the lanes are known
      h('div', { class: 's-compare-bar' }, this.shelf.tabs, h('span', { class: 's-grow' }), this.fresh,
        this.confidence, this.reference, this.blind, this.serve),
      this.heads, this.scroll, this.shelf.element, this.composer.element);
    this.append(this.root);
    addEventListener('keydown', (event) => { this.key(event); this.votes.key(event); });
  }

  /** Away from fields: / goes to the composer, n begins a new chat, r answers the last prompt again. */
  key(event) {
    const typing = event.target.closest?.('input, textarea, select, dialog');
    if (typing || this.root.hidden || event.ctrlKey || event.metaKey || event.altKey || this.hasAttribute('data-shelf')) return;
    const act = { '/': () => this.composer.focus(), n: () => this.fresh_(), r: () => this.again() }[event.key];
    if (act) { event.preventDefault(); act(); }
  }

  /** Draw everything: after lanes, turns or the way of looking changed. */
  show() {
    const { lanes, turns, blind } = this.talk;
    this.style.setProperty('--lanes', lanes.length);
    if (!(this.look.reference >= 0 && this.look.reference < lanes.length)) this.look.reference = null;
    this.heads.toggleAttribute('data-blind', blind);
    this.heads.replaceChildren(...(blind ? [h('p', { class: 's-quiet' },
      `Blind: ${lanes.length} lanes answer shuffled and without names. Vote, and you see who was who.`)]
      : lanes.map((lane, i) => this.head(lane, i))));
    this.composer.more(lanes.length < MOST_LANES && !blind);
    this.composer.ready(turns.length > 0);
    this.composer.choose(this.composer.lane < lanes.length ? this.composer.lane : null);
    this.fresh.hidden = !turns.length;
    this.confidence.setAttribute('aria-pressed', String(this.look.confidence));
    this.blind.setAttribute('aria-pressed', String(blind));
    this.blind.hidden = this.reference.hidden = lanes.length < 2;
    this.reference.replaceChildren(h('option', { value: '' }, 'No differences'),
      ...lanes.map((_, i) => h('option', { value: i }, `Differ from ${LETTERS[i]}`)));
    this.reference.value = this.look.reference ?? '';
    this.cells.clear();
    this.scroll.replaceChildren(...(turns.length ? turns.map((turn) => this.row(turn))
      : [welcome(this)]));
    this.toEnd();
    this.style.setProperty('--gutter', `${this.scroll.offsetWidth - this.scroll.clientWidth}px`);
    this.address();
  }

  head(lane, i) {
    return new LaneHead(lane, i, {
      choices: this.choices, letter: LETTERS[i], full: this.talk.lanes.length >= MOST_LANES,
      changed: () => this.moved(),
      weigh: () => this.talk.weigh(i),
      redraw: () => { this.show(); this.moved(); },
      add: (...lanes) => { this.talk.lanes.push(...lanes.slice(0, MOST_LANES - this.talk.lanes.length));
        this.show(); this.moved(); },
      refresh: async () => { this.choices = await api('/api/chat/choices'); this.show(); this.shelf.again(); },
      remove: this.talk.lanes.length > 1 ? () => {
        if (this.free()) { this.talk.dropLane(i); this.show(); this.moved(); } } : null,
    }).element;
  }

  row(turn) {
    const cells = this.talk.lanes.map((_, lane) => new Cell(lane, {
      again: (i) => this.run(turn, [i], { nextSeed: true }),
      goOn: (i) => this.run(turn, [i], { goOn: true }),
    }));
    this.cells.set(turn, cells);
    const number = this.talk.turns.indexOf(turn);
    const tools = h('span', { class: 's-turn-tools' },
      button('Edit', () => this.edit(number), 's-tool', { title: 'Ask something else here' }),
      button('Branch', () => this.branch(number + 1), 's-tool',
        { title: 'Go on from here in a copy of this conversation' }));
    const element = h('article', { class: 's-turn' },
      h('div', { class: 's-turn-head' }, h('p', { class: 's-prompt' }, turn.prompt), tools),
      h('div', { class: 's-answers' }, cells.map((cell) => cell.element)), this.votes.bar(turn));
    this.refresh(turn);
    return element;
  }

  refresh(turn) {
    const last = turn === this.talk.turns.at(-1), covered = hidden(turn);
    const { reference, confidence } = this.look;
    this.cells.get(turn)?.forEach((cell, lane) => cell.show(turn.answers[lane], {
      confidence, last, busy: Boolean(this.talk.asking), letter: LETTERS[lane],
      reference: reference !== null && reference !== lane && !covered
        ? turn.answers[reference] ?? null : null,
      hidden: covered, place: turn.answers[lane]?.place, named: this.talk.blind, name: laneName(this.talk.lanes[lane]),
    }));
    this.votes.refresh(turn);
  }

  grew(turn) {
    this.growing = turn;
    if (!this.frame) this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      const near = this.near();
      this.refresh(this.growing);
      if (near) this.toEnd();
    });
  }

  // -- what a person does ------------------------------------------------------------------------

  /** Whether lanes and turns may be swapped: not under an answer that is being written. */
  free() {
    if (this.talk.asking) toast('Stop the answer first.');
    return !this.talk.asking;
  }

  async send(prompt) {
    if (this.talk.asking || !prompt.trim()) return;
    if (!this.talk.turns.length) this.scroll.replaceChildren();
    const answered = this.talk.ask(prompt);
    const [before, turn] = this.talk.turns.slice(-2);
    if (turn) this.refresh(before);
    this.scroll.append(this.row(turn ?? before));
    await this.wait(answered);
  }

  async run(turn, lanes, how = {}) {
    if (this.talk.asking) return;
    if (turn.answers.some((answer) => answer?.verdict)) await this.votes.takeBack(turn);
    if (this.talk.asking) return; // pressed twice, while the vote was taken back
    const answered = this.talk.run(turn, lanes, how);
    this.refresh(turn); // a turn that is answered again cannot be voted on
    await this.wait(answered);
  }

  async wait(answered) {
    this.composer.busy(true);
    this.address();
    this.toEnd();
    try { await answered; } finally { this.composer.busy(false); }
    this.composer.ready(true);
    this.fresh.hidden = false;
    const turn = this.talk.turns.at(-1);
    const near = this.near();
    this.refresh(turn);
    if (hidden(turn)) this.votes.focus(turn); else this.composer.focus();
    if (near) this.toEnd();
  }

  again() {
    const turn = this.talk.turns.at(-1);
    if (turn) this.run(turn, this.talk.lanes.keys());
  }

  /** Ask something else at a turn: later turns stay in the old conversation. */
  async edit(number) {
    const { prompt } = this.talk.turns[number];
    if (await this.branch(number)) {
      this.composer.fill(prompt);
      this.composer.focus();
    }
  }

  async branch(turns) {
    if (!this.free()) return false;
    try {
      await this.talk.branch(turns);
    } catch (error) {
      toast(error.message, 'error');
      return false;
    }
    this.show();
    toast('Going on in a copy; the old conversation is kept.');
    return true;
  }

  add() {
    const { lanes } = this.talk, last = lanes.at(-1);
    const used = new Set(lanes.flatMap((lane) => lane.stack.map((part) => part.name)));
    const next = this.choices.adapters.find((a) => a.base === last.model && !used.has(a.name)
      && !a.checkpoint);
    lanes.push({ model: last.model, stack: next ? [{ name: next.name, weight: 1 }] : [] });
    this.show();
    this.moved();
  }

  /** Put a recipe into a new lane, or into the last one where there are as many as can be. */
  take({ model, stack }) {
    if (!this.free()) return;
    const lane = { model, stack: structuredClone(stack) };
    const { lanes } = this.talk;
    if (lanes.length < MOST_LANES) lanes.push(lane); else Object.assign(lanes.at(-1), lane);
    this.show();
    this.moved();
    this.shelf.open('chat');
  }

  fresh_() {
    if (!this.free()) return;
    Object.assign(this.talk, { id: crypto.randomUUID().slice(0, 8), turns: [], parent: null, saved: false });
    this.show();
    this.composer.focus();
  }

  /** How the answers are looked at, without moving what is read. */
  looked(change) {
    Object.assign(this.look, change);
    this.confidence.setAttribute('aria-pressed', String(this.look.confidence));
    for (const turn of this.talk.turns) this.refresh(turn);
    this.address();
  }

  toggleBlind() {
    if (!this.free()) return;
    this.talk.blind = !this.talk.blind;
    const shown = this.talk.blind ? [] : this.talk.turns.filter(hidden);
    for (const a of shown.flatMap((turn) => turn.answers)) delete a.place;
    this.show();
    this.moved();
  }

  /** A lane or a setting changed: the address says so, and what is kept follows. */
  moved() {
    this.address();
    clearTimeout(this.saving);
    this.saving = setTimeout(() => { if (this.talk.saved || this.talk.turns.length) this.talk.save(); }, 300);
  }

  address() {
    const kept = this.talk.turns.length || this.talk.saved;
    const { confidence, reference } = this.look;
    remember({ lane: this.talk.lanes.map(writeLane), chat: kept ? this.talk.id : null,
      confidence: confidence ? 'on' : null, from: reference === null ? null : reference + 1 });
  }

  near() {
    return this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight < 80;
  }

  toEnd() {
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }
}

customElements.define('studio-compare', Compare);
