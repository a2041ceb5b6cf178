// Compare: up to four lanes, one composer. A turn is a row: the prompt once, the answers side by side,
// streaming together from one resident base. Lanes live in the address, the conversation in the
// browser's storage, so a reload finds both. What a model says is text and nothing else.

import { api, button, h, number, query, remember, text, toast } from './dom.js';
import { LaneHead, parseLane, writeLane } from './lane.js';
import { Composer } from './composer.js';

const MOST_LANES = 4;
const LETTERS = 'ABCD';
const KEPT = 20;

export class Compare extends HTMLElement {
  async connectedCallback() {
    if (this.built) return;
    this.built = true;
    this.id = query().get('chat') || crypto.randomUUID().slice(0, 8);
    addEventListener('pagehide', () => { this.leaving = true; });
    this.restore();
    this.build();
    try {
      this.choices = await api('/api/chat/choices');
    } catch (error) {
      this.choices = { models: [{ label: 'starter', path: 'starter' }], adapters: [], prompts: [] };
      toast(error.message, 'error');
    }
    if (!this.lanes.length) this.lanes = this.usualLanes();
    this.moved();
    this.show();
  }

  usualLanes() {
    const newest = this.choices.adapters[0];
    const model = newest?.base || this.choices.models[0].path;
    const base = { model, stack: [] };
    return newest ? [base, { model, stack: [{ name: newest.name, weight: 1 }] }] : [base];
  }

  restore() {
    const kept = read(`studio.chat.${this.id}`) ?? {};
    const asked = query().getAll('lane').map(parseLane);
    this.lanes = (asked.length ? asked : kept.lanes ?? []).slice(0, MOST_LANES);
    this.turns = kept.turns ?? [];
    for (const turn of this.turns) {
      for (const answer of turn.answers) if (answer && !answer.reason) answer.reason = 'interrupted';
    }
  }

  moved() {
    remember({ lane: this.lanes.map(writeLane), chat: this.turns.length ? this.id : null });
    this.keep();
  }

  keep() {
    if (!this.turns.length) return;
    try {
      localStorage.setItem(`studio.chat.${this.id}`,
        JSON.stringify({ lanes: this.lanes, turns: this.turns.map(({ prompt, answers }) =>
          ({ prompt, answers })), time: Date.now() }));
      forgetOldest();
    } catch { /* private window or full storage: the page works, it only forgets */ }
  }

  build() {
    this.heads = h('div', { class: 's-lane-heads' });
    this.scroll = h('div', { class: 's-turns', 'data-testid': 'turns' });
    this.composer = new Composer({
      send: (prompt) => this.ask(prompt),
      stop: () => this.stop(),
      again: () => this.again(),
      fresh: () => this.fresh(),
      add: () => this.add(),
    });
    this.append(h('div', { class: 's-compare' }, this.heads, this.scroll, this.composer.element));
  }

  show() {
    this.style.setProperty('--lanes', this.lanes.length);
    this.heads.replaceChildren(...this.lanes.map((lane, i) => new LaneHead(lane, i, {
      choices: this.choices,
      letter: LETTERS[i],
      changed: () => this.moved(),
      redraw: () => { this.moved(); this.show(); },
      remove: this.lanes.length > 1 ? () => this.drop(i) : null,
    }).element));
    this.composer.more(this.lanes.length < MOST_LANES);
    this.scroll.replaceChildren(...(this.turns.length ? this.turns.map((turn) => this.turn(turn))
      : [this.welcome()]));
    this.composer.ready(this.turns.length > 0);
    this.toEnd();
  }

  welcome() {
    const tuned = this.lanes.some((lane) => lane.stack.length);
    return h('div', { class: 's-welcome' },
      h('h2', {}, 'One prompt, every lane answers'),
      h('p', {}, tuned ? 'Same prompt, same seed, side by side: what you see is what the adapter changed.'
        : 'Only the base is here so far. Train an adapter, or add a lane, to see a difference.'),
      h('div', { class: 's-prompts' }, this.choices.prompts.slice(0, 6).map((prompt) =>
        button(prompt, () => this.ask(prompt), 's-chip'))),
      tuned ? '' : h('a', { class: 's-button', href: '/' }, 'Train an adapter'));
  }

  add() {
    const last = this.lanes.at(-1);
    const used = new Set(this.lanes.flatMap((lane) => lane.stack.map((part) => part.name)));
    const next = this.choices.adapters.find((a) => a.base === last.model && !used.has(a.name));
    this.lanes.push({ model: last.model, stack: next ? [{ name: next.name, weight: 1 }] : [] });
    this.moved();
    this.show();
  }

  drop(index) {
    this.lanes.splice(index, 1);
    for (const turn of this.turns) turn.answers.splice(index, 1);
    this.moved();
    this.show();
  }

  turn(turn) {
    turn.cells = this.lanes.map((_, i) => this.cell(turn.answers[i], i));
    return h('article', { class: 's-turn' }, h('p', { class: 's-prompt' }, turn.prompt),
      h('div', { class: 's-answers' }, turn.cells.map((cell) => cell.element)));
  }

  cell(answer, index) {
    const words = h('div', { class: 's-words', 'data-testid': `answer-${index}` });
    const foot = h('footer', { class: 's-cell-foot' });
    const element = h('section', { class: 's-cell', style: `--hue:var(--s-run-${index})`,
      'aria-label': `Lane ${LETTERS[index]}` }, words, foot);
    const cell = { element, words, foot };
    fill(cell, answer);
    return cell;
  }

  messages(lane) {
    return this.turns.flatMap(({ prompt, answers }) => {
      const answer = answers[lane];
      return answer?.text ? [{ role: 'user', content: prompt },
        { role: 'assistant', content: answer.text }] : [];
    });
  }

  async ask(prompt) {
    if (this.asking || !prompt.trim()) return;
    const { system, sampling } = this.composer.settings();
    const request = {
      id: crypto.randomUUID(),
      lanes: this.lanes.map((lane, i) => ({ ...lane, system, sampling,
        messages: [...this.messages(i), { role: 'user', content: prompt }] })),
    };
    const turn = { prompt, answers: this.lanes.map((lane) => ({ text: '', lane: writeLane(lane) })) };
    if (!this.turns.length) this.scroll.replaceChildren();
    this.turns.push(turn);
    this.scroll.append(this.turn(turn));
    this.moved();
    this.toEnd();
    this.asking = request.id;
    this.composer.busy(true);
    try {
      await this.stream(request, turn);
    } catch (error) {
      if (!this.leaving) this.fail(turn, error.message);
    }
    for (const answer of turn.answers) if (!answer.reason) answer.reason = 'interrupted';
    this.refresh(turn);
    this.asking = null;
    this.composer.busy(false);
    this.composer.ready(true);
    this.keep();
  }

  async stream(request, turn) {
    const response = await fetch('/api/chat/generate', { method: 'POST',
      headers: { 'content-type': 'application/json' }, body: JSON.stringify(request) });
    if (!response.ok) {
      const answer = await response.json().catch(() => ({}));
      throw new Error(answer.error?.text || `The studio answered ${response.status}.`);
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines) if (line) this.take(JSON.parse(line), turn);
    }
  }

  take(event, turn) {
    const touched = event.lane == null ? turn.answers : [turn.answers[event.lane]];
    for (const answer of touched.filter(Boolean)) {
      if (event.type === 'status') answer.status = event.text;
      if (event.type === 'delta') answer.text += event.text;
      if (event.type === 'error') Object.assign(answer, { reason: 'error', error: event.text });
      if (event.type === 'done') {
        const { type, lane, ...stats } = event;
        Object.assign(answer, stats);
      }
    }
    this.changed = turn;
    if (!this.frame) this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.refresh(this.changed);
    });
    if (Date.now() - (this.kept ?? 0) > 500) { this.kept = Date.now(); this.keep(); }
  }

  refresh(turn) {
    const near = this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight < 80;
    turn.cells.forEach((cell, i) => fill(cell, turn.answers[i]));
    if (near) this.toEnd();
  }

  fail(turn, message) {
    for (const answer of turn.answers) {
      if (!answer.reason) Object.assign(answer, { reason: 'error', error: message });
    }
  }

  stop() {
    if (this.asking) api('/api/chat/stop', { id: this.asking }).catch((e) => toast(e.message, 'error'));
  }

  again() {
    const last = this.turns.at(-1);
    if (!last || this.asking) return;
    this.turns.pop();
    this.scroll.lastElementChild.remove();
    this.ask(last.prompt);
  }

  fresh() {
    if (this.asking) return;
    this.id = crypto.randomUUID().slice(0, 8);
    this.turns = [];
    this.moved();
    this.show();
    this.composer.focus();
  }

  toEnd() {
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }
}

function fill({ element, words, foot }, answer) {
  element.toggleAttribute('data-empty', !answer);
  if (!answer) return text(words, '');
  const waiting = !answer.text && !answer.reason;
  words.toggleAttribute('data-waiting', waiting);
  words.toggleAttribute('data-error', answer.reason === 'error');
  text(words, answer.error ? [answer.text, answer.error].filter(Boolean).join('\n\n')
    : waiting ? answer.status ?? '' : answer.text || '(an empty answer)');
  text(foot, stats(answer));
}

/** 24 tokens · 31 tok/s · first after 0.2 s · pirate × 1 · logits moved by 6.7 */
function stats({ reason, tokens, tokens_per_second: speed, first_token_seconds: first, active }) {
  if (!reason) return '';
  const how = { length: 'cut at the limit', stopped: 'stopped', interrupted: 'interrupted' }[reason];
  const stack = active?.stack ?? [];
  const moved = active?.max_logit_difference;
  return [tokens != null && `${tokens} tokens`, speed && `${number(speed, 3)} tok/s`,
    first != null && `first after ${number(first, 2)} s`, how,
    active && (stack.map((part) => `${part.name} × ${part.weight}`).join(' + ') || 'base'),
    stack.length > 0 && moved != null && `logits moved by ${number(moved, 2)}`,
  ].filter(Boolean).join(' · ');
}

function read(key) {
  try { return JSON.parse(localStorage.getItem(key)); } catch { return null; }
}

function forgetOldest() {
  const chats = Object.keys(localStorage).filter((key) => key.startsWith('studio.chat.'))
    .map((key) => [key, read(key)?.time ?? 0]).sort((a, b) => b[1] - a[1]);
  for (const [key] of chats.slice(KEPT)) localStorage.removeItem(key);
}
