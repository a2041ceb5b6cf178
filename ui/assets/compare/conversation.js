// One conversation over several lanes: its turns, the requests that answer them, and saving. It calls
// the server's routes and does not touch the document.

import { api, at, request, send, t, toast } from '../core/dom.js';
import { writeLane } from '../core/lanes.js';

const ALTERNATIVES = 4;
const SAVE_EVERY = 2000;
const KEEPALIVE_BYTES = 60000; // browsers send at most 64 KB while a page closes

export class Conversation {
  /** `changed(turn)` is called whenever an answer grew. */
  constructor(id, settings, changed) {
    Object.assign(this, { id, changed, lanes: [], turns: [], settings, blind: false, alone: false });
    addEventListener('pagehide', () => { this.leaving = true; this.saveNow(); });
  }

  /** Read the saved conversation; lanes of the address win, with the settings saved for them. */
  async open(asked) {
    const found = this.id && await send('/api/do/conversations', { show: this.id });
    if (!found) { this.begin(); this.lanes = asked; return; } // what could not be read is not written over
    const { turns, lanes, settings } = found;
    this.begin({ id: this.id, turns, saved: true });
    this.lanes = asked.length ? withSettings(asked, lanes) : lanes;
    this.settings = { ...this.settings, ...settings.shared };
    this.blind = settings.blind ?? false;
    this.alone = settings.alone ?? false;
    for (const turn of turns) {
      for (const answer of turn.answers) if (answer && !answer.reason) answer.reason = 'interrupted';
    }
  }

  /** Become another conversation. `missing` are the numbers of turns that could not be saved. */
  begin(other = {}) {
    Object.assign(this, { id: crypto.randomUUID().slice(0, 8), turns: [], parent: null, saved: false, warned: false,
      missing: new Set() }, other);
  }

  /** The settings of a lane, or the shared ones; `own` copies them to the lane. */
  settingsOf(lane, own = false) {
    if (lane === null) return this.settings;
    const holder = this.lanes[lane];
    if (own) holder.own ??= structuredClone(this.settings);
    return holder.own ?? this.settings;
  }

  async ask(prompt) {
    const turn = { prompt, answers: this.lanes.map(() => blank()) };
    if (this.blind) {
      const places = shuffled(this.lanes.length);
      turn.answers.forEach((answer, lane) => { answer.place = places[lane]; });
    }
    this.turns.push(turn);
    return this.run(turn, this.lanes.keys());
  }

  /** Answer a turn's lanes: anew, or continuing a truncated answer. */
  async run(turn, lanes, { goOn = false, nextSeed = false } = {}) {
    const number = this.turns.indexOf(turn), wanted = [...lanes];
    const asked = { id: crypto.randomUUID(), lanes: wanted.map((lane) => {
      const old = turn.answers[lane];
      const { system, sampling } = this.settingsOf(lane);
      const seed = nextSeed ? (old?.seed ?? sampling.seed) + 1 : sampling.seed;
      const kept = goOn ? { text: whole(old.text), parts: old.parts?.map(([part, words]) => [part, whole(words)]),
        tokens: old.tokens } : blank();
      const tail = goOn ? [{ role: 'assistant', content: kept.text }] : [];
      turn.answers[lane] = { ...kept, seed,
        place: old?.place, lane: writeLane(this.lanes[lane]), alone: this.alone, system, sampling };
      return { model: this.lanes[lane].model, stack: this.lanes[lane].stack, system,
        sampling: { ...sampling, seed, logprobs: ALTERNATIVES },
        messages: [...this.before(number, lane), { role: 'user', content: turn.prompt }, ...tail] };
    }) };
    this.asking = asked.id;
    this.dropped = new AbortController();
    this.answering = wanted;
    this.unsaved = number;
    try {
      await this.save(number);
      await this.stream(asked, turn, wanted);
    } catch (error) {
      for (const lane of wanted) {
        const answer = turn.answers[lane];
        if (!answer.reason && !this.leaving) Object.assign(answer, this.dropped.signal.aborted ? { reason: 'stopped' }
          : { reason: 'error', error: error.message });
      }
    }
    for (const lane of wanted) turn.answers[lane].reason ??= 'interrupted';
    this.changed(turn);
    await this.save(number);
    this.asking = this.unsaved = null; // once it is saved: a new chat or a copy would lose it
  }

  /** What a lane is shown before a turn: nothing where each prompt stands alone. */
  before(number, lane) {
    return this.alone ? [] : this.turns.slice(0, number).flatMap(({ prompt, answers }) => {
      const { text, parts } = answers[lane] ?? {};
      return text ? [{ role: 'user', content: prompt }, { role: 'assistant', content: text, parts }] : [];
    });
  }

  async stream(asked, turn, lanes) {
    const response = await request('/api/chat/generate', asked, this.dropped.signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '', saved = Date.now();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines) if (line) take(JSON.parse(line), turn, lanes);
      this.changed(turn);
      if (Date.now() - saved > SAVE_EVERY) { saved = Date.now(); this.save(this.turns.indexOf(turn)); }
    }
  }

  /** Stop the answers; a host that does not know of them yet is never asked for them. */
  async stop() {
    const { asking, dropped } = this;
    if (asking && !(await send('/api/chat/stop', { id: asking }))?.stopped) dropped.abort();
  }

  /** Weights changed while the lane answers: apply them from its next token on. */
  weigh(lane) {
    const place = this.asking ? this.answering.indexOf(lane) : -1;
    if (place < 0 || this.turns.at(-1)?.answers[lane]?.reason) return;
    send('/api/chat/weigh', { id: this.asking, lane: place, stack: this.lanes[lane].stack });
  }

  dropLane(index) {
    this.lanes.splice(index, 1);
    for (const turn of this.turns) turn.answers.splice(index, 1);
    this.turns.forEach((_, number) => this.save(number));
  }

  meta() {
    return { id: this.id, lanes: this.lanes, settings: { shared: this.settings, blind: this.blind,
      alone: this.alone },
      parent: this.parent ?? null };
  }

  /** Save lanes and settings, the turn of a number, and those that failed before, as none may be left out. A failure
   *  is shown once. */
  async save(number) {
    const { id, turns, missing } = this;
    try {
      await api('/api/chat/conversations', { ...this.meta(), known: this.saved, turns: turns.length });
      if (id === this.id) this.saved = true;
      for (const one of new Set([...missing, number])) {
        if (turns[one]) await api('/api/chat/turns', { conversation: id, number: one, prompt: turns[one].prompt,
          answers: turns[one].answers.map((a) => a ?? {}) });
        missing.delete(one);
      }
      this.warned = false;
    } catch (error) {
      if (turns[number]) missing.add(number);
      if (!this.warned && !this.leaving) toast(t`Not saved: ${error.message}`, 'error');
      this.warned = true;
    }
  }

  /** Save the unsaved turn while the page closes: its text at least, all of it if the browser allows. */
  saveNow() {
    const turn = this.turns[this.unsaved];
    if (!turn) return;
    const body = (answers) => JSON.stringify({ conversation: this.id, number: this.unsaved,
      prompt: turn.prompt, answers });
    const whole = body(turn.answers);
    fetch(at('/api/chat/turns'), { method: 'POST', keepalive: true,
      headers: { 'content-type': 'application/json' }, body: new Blob([whole]).size < KEEPALIVE_BYTES
        ? whole : body(turn.answers.map((answer) => ({ ...answer, tokens: undefined }))) });
  }

  /** Go on in a copy of the first turns; from the first that is not saved, as they stand here. */
  async branch(turns) {
    const id = crypto.randomUUID().slice(0, 8), kept = Math.min(turns, ...this.missing);
    const copied = structuredClone(this.turns.slice(0, turns));
    const { parent } = await api('/api/chat/branch', { id: this.id, new: id, turns: kept });
    if (this.asking) throw new Error(t`A prompt was sent before the copy was made; the copy is under Conversations.`);
    for (const answer of copied.flatMap(({ answers }) => answers)) { // as the server copies them
      if (answer?.verdict) delete answer.place;
      delete answer?.verdict;
      delete answer?.original;
    }
    this.begin({ id, parent, turns: copied, saved: true });
    for (let number = kept; number < turns; number += 1) this.missing.add(number);
    if (kept < turns) await this.save();
  }
}

/** The lanes of an address, each with the settings of a saved lane that reads the same. */
export function withSettings(asked, saved) {
  const left = [...saved];
  return asked.map((lane) => {
    const at = left.findIndex((one) => writeLane(one) === writeLane(lane));
    return at < 0 ? lane : left.splice(at, 1)[0];
  });
}

/** Keep thoughts and calls apart from the text, as [part, text] in the order written. */
function addPart(answer, part, words) {
  answer.parts ??= answer.text ? [['text', answer.text]] : [];
  const last = answer.parts.at(-1);
  if (last?.[0] === part) last[1] += words; else answer.parts.push([part, words]);
}

const blank = () => ({ text: '', tokens: [] });

/** A text without the half of a character that it was cut in. */
const whole = (words) => words.replace(/\uFFFD+$/, '');

/** An answer without its thoughts and calls. */
export const textOf = ({ parts, text }) => (parts ?? [['text', text]]).filter(([part]) => part === 'text')
  .map(([, words]) => words).join('').trim();

/** Replace an answer's text, and what it said after it; its thought stays. */
export function correct(answer, words) {
  answer.original ??= textOf(answer);
  if (answer.parts) {
    const at = answer.parts.findIndex(([part, said]) => part === 'call' || (part === 'text' && said.trim()));
    answer.parts = [...answer.parts.slice(0, at < 0 ? undefined : at), ['text', words]];
  }
  answer.text = answer.parts ? answer.parts.map(([, said]) => said).join('') : words;
  delete answer.tokens;
}

function take(event, turn, lanes) {
  const touched = event.lane == null ? lanes.map((lane) => turn.answers[lane]).filter(({ reason }) => !reason)
    : [turn.answers[lanes[event.lane]]];
  for (const answer of touched) {
    if (event.type === 'status') {
      const passing = event.text.endsWith('…') || (event.lane == null && !answer.text);
      answer[passing ? 'status' : 'note'] = event.text;
    }
    if (event.type === 'delta') {
      if (event.part || answer.parts) addPart(answer, event.part ?? 'text', event.text);
      answer.text += event.text;
      answer.tokens?.push(...(event.tokens ?? []).map(({ text, logprob, top }) =>
        [text, logprob, top.map((other) => [other.text, other.logprob])]));
    }
    if (event.type === 'error') Object.assign(answer, { reason: 'error', error: event.text });
    if (event.type === 'done') {
      const { type, lane, tokens, ...stats } = event;
      delete answer.status;
      Object.assign(answer, stats, { tokens_count: tokens });
    }
  }
}

function shuffled(count) {
  const places = [...Array(count).keys()];
  for (let i = count - 1; i > 0; i -= 1) {
    const j = crypto.getRandomValues(new Uint32Array(1))[0] % (i + 1);
    [places[i], places[j]] = [places[j], places[i]];
  }
  return places;
}
