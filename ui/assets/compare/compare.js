// The Compare page: lanes side by side, one composer. A turn is a row: the prompt once, the answers side
// by side, streaming together from one resident base. Lanes and view are in the address, the
// conversation in the database, so a reload restores both. Model output is shown as text only.

import { api, button, h, Page, query, quiet, redraw, remember, send, t, toast } from '../core/dom.js';
import { dialog, options, select } from '../core/form.js';
import { laneName, LETTERS, parseLane, writeLane } from '../core/lanes.js';
import { saveReport } from '../core/take_away.js';
import { Answer, answeredBy } from './answer.js';
import { Composer, usualSettings } from './composer.js';
import { Conversation, correct, textOf } from './conversation.js';
import { LaneHead } from './lane.js';
import { runOf, showEndpoint, Tabs, welcome } from './tabs.js';
import { isBlind, Votes } from './votes.js';

export class Compare extends Page {
  async build() {
    this.cells = new Map();
    this.questions = [];
    this.view = { confidence: query().has('confidence'), reference: Number(query().get('from') || NaN) - 1 };
    this.choices = await send('/api/chat/choices')
      ?? { models: [{ label: 'starter', path: 'starter' }], adapters: [], prompts: [], recipes: [], sampling: {},
        max_lanes: 1 };
    this.conversation = new Conversation(query().get('chat'), usualSettings(this.choices.sampling),
      (turn) => this.grew(turn));
    this.draw();
    await this.conversation.open(query().getAll('lane').slice(0, this.choices.max_lanes).map(parseLane));
    if (!this.conversation.lanes.length) this.conversation.lanes = this.usualLanes();
    if (query().has('blind') && !this.conversation.turns.length) {
      Object.assign(this.conversation, { blind: true, alone: true });
    }
    await this.ask();
    this.root.hidden = false;
    this.show();
    this.tabs.open(query().get('view') ?? 'chat');
    api('/api/chat/warm', {}).catch(() => {}); // the first prompt shows the error
  }

  /** Get the questions of the run that the last lane is of, and suggest them before the first turn. */
  async ask() {
    const run = runOf(this.conversation.lanes, this.choices.adapters);
    if (run === this.asked) return;
    this.asked = run;
    const shown = run && await api('/api/do/show', { job: run }).catch(() => null); // it may be deleted
    if (run !== this.asked) return;
    this.questions = shown?.questions ?? [];
    if (!this.conversation.turns.length) redraw(this.scroll, welcome(this));
  }

  usualLanes() {
    const newest = this.choices.adapters[0];
    const model = newest?.base || this.choices.models[0].path;
    const base = { model, stack: [] };
    return newest ? [base, { model, stack: [{ name: newest.name, weight: 1 }] }] : [base];
  }

  draw() {
    this.heads = h('div.s-lane-heads');
    this.legend = quiet(h('span.s-sure', { style: '--doubt:.5' }, t`Tinted:`),
      t` the model was unsure of this token. Hover shows what else it could have said.`);
    this.scroll = h('div.s-turns', { testid: 'turns' });
    this.votes = new Votes(this);
    this.composer = new Composer(this.choices.sampling, {
      send: (prompt) => this.send(prompt),
      stop: () => this.conversation.stop(),
      again: () => this.again(),
      add: () => this.add(),
      letters: () => [...LETTERS].slice(0, this.conversation.lanes.length),
      settings: (lane, own) => this.conversation.settingsOf(lane, own),
      changed: () => this.moved(),
    });
    this.confidence = button(t`Confidence`, () => this.setView({ confidence: !this.view.confidence }), 's-tool');
    this.reference = select([], '', (value) => this.setView({ reference: value === '' ? null : Number(value) }),
      { label: t`Differences`, title: t`Mark what differs, word by word` });
    this.blind = button(t`Blind`, () => this.toggleBlind(), 's-tool', { testid: 'blind',
      title: t`Shuffle the lanes and hide their names until you vote` });
    this.report = button(t`Save a report`, () => saveReport({ conversation: this.conversation.id }), 's-tool',
      { hidden: true, title: t`The conversation with its votes, as one HTML file` });
    this.alone = button(t`Each alone`, () => {
      this.conversation.alone = !this.conversation.alone;
      this.redo();
    }, 's-tool', { title: t`Answer each prompt without the turns before it, as votes for a dataset need` });
    this.newChat = button(t`New chat`, () => this.restart(), 's-tool', { title: t`Key n` });
    this.serve = button(t`Use elsewhere`, () => showEndpoint(this.conversation.lanes), 's-tool',
      { title: t`These lanes in other programs, over an OpenAI-compatible address` });
    this.tabs = new Tabs(this);
    this.root = h('div.s-compare', { hidden: true }, // until the lanes are known
      h('div.s-compare-bar', this.tabs.tabs, h('span.s-grow'), this.newChat,
        this.report, this.confidence, this.reference, this.blind, this.alone, this.serve),
      this.heads, this.legend, this.scroll, this.tabs.element, this.composer.element);
    this.append(h('h1.s-hidden', t`Compare`), this.root);
    addEventListener('keydown', (event) => {
      if (this.root.hidden || this.hasAttribute('data-tab') || event.ctrlKey || event.metaKey || event.altKey
        || event.repeat || document.querySelector('dialog[open]')) return;
      this.key(event);
      this.votes.key(event);
    });
  }

  /** Outside text fields: / focuses the composer, n starts a new chat, r answers the last prompt again. */
  key(event) {
    if (event.target.closest?.('input, textarea, select')) return;
    const act = { '/': () => this.composer.focus(), n: () => this.restart(), r: () => this.again() }[event.key];
    if (act) { event.preventDefault(); act(); }
  }

  /** Draw everything: after lanes, turns or the view changed. */
  show() {
    const { lanes, turns, blind, alone } = this.conversation;
    this.style.setProperty('--lanes', lanes.length);
    if (!(this.view.reference >= 0 && this.view.reference < lanes.length)) this.view.reference = null;
    this.heads.toggleAttribute('data-blind', blind);
    redraw(this.heads, ...(blind ? [h('p.s-quiet',
      t`Blind: ${lanes.length} lanes answer in random order, without names. Vote to reveal the names.${alone
        ? t` Each prompt is answered on its own.` : ''}`)]
      : lanes.map((lane, i) => this.head(lane, i))));
    this.composer.more(lanes.length < this.choices.max_lanes && !blind);
    this.composer.ready(turns.length > 0);
    this.composer.choose(this.composer.lane < lanes.length ? this.composer.lane : null);
    this.newChat.hidden = this.report.hidden = !turns.length;
    this.tint();
    this.blind.ariaPressed = blind;
    this.alone.ariaPressed = alone;
    this.blind.hidden = this.alone.hidden = this.reference.hidden = lanes.length < 2;
    redraw(this.reference, ...options([['', t`No differences`],
      ...lanes.map((_, i) => [i, t`Differ from ${LETTERS[i]}`])], this.view.reference ?? ''));
    this.cells.clear();
    redraw(this.scroll, ...(turns.length ? turns.map((turn) => this.row(turn)) : [welcome(this)]));
    this.toEnd();
    const { offsetWidth: wide, clientWidth: inside } = this.scroll;
    if (wide) this.style.setProperty('--gutter', `${wide - inside}px`);
    this.address();
  }

  head(lane, i) {
    return new LaneHead(lane, i, {
      choices: this.choices, letter: LETTERS[i], full: this.conversation.lanes.length >= this.choices.max_lanes,
      changed: () => { this.moved(); this.refreshLast(); },
      weigh: () => this.conversation.weigh(i),
      redraw: () => this.redo(),
      add: (...lanes) => {
        const { lanes: now } = this.conversation;
        now.push(...lanes.slice(0, this.choices.max_lanes - now.length));
        this.redo();
      },
      refresh: async () => { this.choices = await api('/api/chat/choices'); this.show(); this.tabs.refresh(); },
      remove: this.conversation.lanes.length > 1 ? () => {
        if (!this.free() || (this.conversation.turns.length
          && !window.confirm(t`Remove this lane and all of its answers?`))) return;
        this.conversation.dropLane(i);
        this.redo();
      } : null,
    }).element;
  }

  row(turn) {
    const cells = this.conversation.lanes.map((_, lane) => new Answer(lane, {
      again: (i) => this.run(turn, [i], { nextSeed: true }),
      goOn: (i) => this.run(turn, [i], { goOn: true }),
      correct: (i) => this.correct(turn, turn.answers[i]),
    }));
    this.cells.set(turn, cells);
    const number = this.conversation.turns.indexOf(turn);
    const { wanted } = this.questions.find(({ prompt }) => prompt === turn.prompt) ?? {};
    const tools = h('span.s-turn-tools',
      button(t`Edit`, () => this.edit(number), 's-tool', { title: t`Send another prompt here` }),
      button(t`Branch`, () => this.branch(number + 1), 's-tool',
        { title: t`Go on from here in a copy of this conversation` }));
    const element = h('article.s-turn',
      h('div.s-turn-head', h('p.s-prompt', turn.prompt), tools), wanted ? quiet(t`Wanted: ${wanted}`) : '',
      h('div.s-answers', cells.map((cell) => cell.element)), this.votes.bar(turn));
    this.refresh(turn);
    return element;
  }

  refresh(turn) {
    const last = turn === this.conversation.turns.at(-1), blind = isBlind(turn);
    const { reference, confidence } = this.view;
    this.cells.get(turn)?.forEach((cell, lane) => cell.show(turn.answers[lane], {
      confidence, last, busy: Boolean(this.conversation.asking), letter: LETTERS[lane],
      reference: reference !== null && reference !== lane && !blind
        ? turn.answers[reference] ?? null : null,
      hidden: blind, place: turn.answers[lane]?.place, named: this.conversation.blind,
        name: laneName(answeredBy(turn.answers[lane], this.conversation.lanes[lane])),
      stands: this.conversation.lanes[lane],
    }));
    this.votes.refresh(turn);
  }

  refreshLast() {
    const turn = this.conversation.turns.at(-1);
    if (turn) this.refresh(turn);
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

  // -- actions --

  /** Return true if lanes and turns may change: not while an answer is being generated. */
  free() {
    if (this.conversation.asking) toast(t`Stop the answer first.`);
    return !this.conversation.asking;
  }

  async send(prompt) {
    if (this.conversation.asking || !prompt.trim()) return;
    if (!this.conversation.turns.length) redraw(this.scroll);
    const answered = this.conversation.ask(prompt);
    const [before, turn] = this.conversation.turns.slice(-2);
    if (turn) this.refresh(before);
    this.scroll.append(this.row(turn ?? before));
    await this.wait(answered);
  }

  async run(turn, lanes, how = {}) {
    if (this.conversation.asking) return;
    if (turn.answers.some((answer) => answer?.verdict)) await this.votes.takeBack(turn);
    if (this.conversation.asking) return; // pressed twice, while the vote was taken back
    const answered = this.conversation.run(turn, lanes, how);
    this.refresh(turn); // a turn that is answered again cannot be voted on
    await this.wait(answered);
  }

  async wait(answered) {
    this.composer.busy(true);
    this.address();
    this.toEnd();
    try { await answered; } finally { this.composer.busy(false); }
    this.composer.ready(true);
    this.newChat.hidden = this.report.hidden = false;
    const turn = this.conversation.turns.at(-1);
    const near = this.near();
    this.refresh(turn);
    if (isBlind(turn)) this.votes.focus(turn); else this.composer.focus();
    if (near) this.toEnd();
  }

  again() {
    const turn = this.conversation.turns.at(-1);
    if (turn) this.run(turn, this.conversation.lanes.keys());
  }

  /** Send another prompt at a turn, in a copy: the original conversation keeps its later turns. */
  async edit(number) {
    const { prompt } = this.conversation.turns[number];
    if (await this.branch(number)) {
      this.composer.fill([prompt, this.composer.prompt.value].filter(Boolean).join('\n\n')); // what is typed stays
      this.composer.focus();
    }
  }

  /** Replace an answer by what it should have been; later turns continue from it. */
  correct(turn, answer) {
    const words = h('textarea', { rows: 8, label: t`Answer` });
    words.value = textOf(answer);
    dialog(t`Correct the answer`, [quiet(t`The next turns continue from it, and datasets made of this conversation take
      it as better than what the lane said.`), words], t`Save`, async () => {
      correct(answer, words.value.trim());
      await this.conversation.save(this.conversation.turns.indexOf(turn));
      this.refresh(turn);
    });
  }

  async branch(turns) {
    if (!this.free()) return false;
    await this.conversation.branch(turns);
    this.show();
    toast(t`This is a copy; the original conversation is unchanged.`);
    return true;
  }

  add() {
    const { lanes } = this.conversation, last = lanes.at(-1);
    const used = new Set(lanes.flatMap((lane) => lane.stack.map((part) => part.name)));
    const next = this.choices.adapters.find((a) => a.base === last.model && !used.has(a.name)
      && !a.checkpoint);
    lanes.push({ model: last.model, stack: next ? [{ name: next.name, weight: 1 }] : [] });
    this.redo();
  }

  /** Put a recipe into a new lane, or into the last one at the limit of lanes. */
  take({ model, stack }) {
    if (!this.free()) return;
    const lane = { model, stack: structuredClone(stack) };
    const { lanes } = this.conversation;
    if (lanes.length < this.choices.max_lanes) lanes.push(lane); else Object.assign(lanes.at(-1), lane);
    this.redo();
    this.tabs.open('chat');
  }

  restart() {
    if (!this.free()) return;
    this.conversation.begin();
    this.show();
    this.composer.focus();
  }

  /** Change the view of the answers without scrolling. */
  setView(change) {
    Object.assign(this.view, change);
    this.tint();
    for (const turn of this.conversation.turns) this.refresh(turn);
    this.address();
  }

  tint() {
    this.confidence.ariaPressed = this.view.confidence;
    this.legend.hidden = !this.view.confidence || this.hasAttribute('data-tab');
  }

  toggleBlind() {
    if (!this.free()) return;
    this.conversation.blind = !this.conversation.blind;
    const shown = this.conversation.blind ? [] : this.conversation.turns.filter(isBlind);
    for (const a of shown.flatMap((turn) => turn.answers)) delete a.place;
    this.redo();
  }

  redo() {
    this.show();
    this.moved();
  }

  /** A lane or a setting changed: write the address, and save shortly after. */
  moved() {
    this.address();
    this.ask();
    clearTimeout(this.saving);
    const { conversation } = this;
    this.saving = setTimeout(() => { if (conversation.saved || conversation.turns.length) conversation.save(); }, 300);
  }

  address() {
    const stored = this.conversation.turns.length || this.conversation.saved;
    const { confidence, reference } = this.view;
    remember({ lane: this.conversation.lanes.map(writeLane), chat: stored ? this.conversation.id : null,
      confidence: confidence ? 'on' : null, from: reference === null ? null : reference + 1 });
  }

  /** The turns, or on a phone the page. */
  get scroller() {
    return this.scroll.scrollHeight > this.scroll.clientHeight + 1 ? this.scroll : document.scrollingElement;
  }

  near() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < 80;
  }

  toEnd() {
    if (this.conversation.turns.length) this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}

customElements.define('studio-compare', Compare);
