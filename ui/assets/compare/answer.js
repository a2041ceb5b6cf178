// One answer of one lane: its text while it streams, token confidence, differences from another lane,
// and which adapters were active.

import { button, copy, dots, h, number, redraw, t, text, word } from '../core/dom.js';
import { called, hueOf, parseLane } from '../core/lanes.js';
import { code, diff, markdown } from './text.js';

const PROOF = t`What was active. “Changed logits by” is the largest difference of a logit from the base alone; it is
  shown where it is more than rounding, which proves that the adapters took part.`;

const EMPTY = { stopped: t`(stopped before the first token)`,
  interrupted: t`(interrupted before the first token: ask again)` };

export class Answer {
  /** `page`: again(lane), goOn(lane), correct(lane). */
  constructor(lane, page) {
    this.lane = lane;
    this.name = h('header.s-cell-name', { hidden: true });
    this.words = h('div.s-words', { testid: `answer-${lane}` });
    this.figures = h('span', { title: PROOF, testid: `figures-${lane}` });
    this.note = h('p.s-cell-note', { hidden: true });
    this.go = button(t`Continue`, () => page.goOn(lane), 's-tool', { title: t`Continue the truncated answer` });
    this.tools = h('span.s-cell-tools', this.go,
      button(t`Again`, () => page.again(lane), 's-tool', { title: t`Another answer, with the next seed` }),
      button(t`Correct`, () => page.correct(lane), 's-tool', { title: t`Write what it should have said` }),
      this.take = button(t`Copy`, () => copy(this.answer?.text ?? '', this.take), 's-tool'));
    this.element = h('section.s-cell', this.name, this.words, this.note,
      h('footer.s-cell-foot', this.figures, this.tools));
  }

  /** `view`: confidence, reference (an answer or null), hidden (its place when blind), name, named (show it),
   *  last, busy, stands (the lane as it is now). */
  show(answer, view) {
    this.answer = answer;
    const { element, words } = this;
    element.style.cssText = view.hidden ? '--hue:var(--s-line-strong);--ink:var(--s-muted)'
      : `--hue:${hueOf(this.lane)}`;
    element.style.order = view.place ?? this.lane;
    element.ariaLabel = view.hidden ? t`Answer ${view.place + 1}` : t`Lane ${view.letter}`;
    element.toggleAttribute('data-empty', !answer);
    element.dataset.verdict = view.hidden ? '' : answer?.verdict ?? '';
    this.name.hidden = view.place == null && !view.named;
    text(this.name, view.hidden ? `${view.place + 1}`
      : `${view.place == null ? view.letter : view.place + 1} · ${view.name}`);
    this.tools.hidden = !view.last || view.busy || !answer;
    if (!answer) { words.replaceChildren(); text(this.figures, ''); this.note.hidden = true; return; }
    this.go.hidden = !['length', 'stopped', 'interrupted'].includes(answer.reason) || !answer.text;
    const waiting = !answer.text && !answer.reason;
    words.toggleAttribute('data-waiting', waiting);
    words.toggleAttribute('data-error', answer.reason === 'error' && !answer.text);
    this.fill(answer, view, waiting);
    const noted = !view.hidden && answer.note; // it may name adapters
    const remark = [answer.text && answer.error, noted].filter(Boolean).join(' ');
    this.note.hidden = !remark;
    text(this.note, remark);
    const old = !view.hidden && view.last && isOld(answer, view.stands);
    element.toggleAttribute('data-old', old);
    text(this.figures, view.hidden ? '' : `${old ? t`other weights than now: ask again · ` : ''}${figures(answer)}`);
  }

  fill(answer, view, waiting) {
    const { words } = this;
    if (waiting || (!answer.text && answer.reason)) {
      text(words, waiting ? (!view.hidden && answer.status) || t`Waiting for the answer …`
        : answer.error ?? EMPTY[answer.reason] ?? t`(an empty answer)`);
      this.shown = null;
      return;
    }
    const key = JSON.stringify([answer.text, view.confidence && answer.tokens?.length,
      view.reference?.text ?? null]);
    if (key === this.shown) return;
    this.shown = key;
    words.dataset.view = view.reference ? 'diff' : view.confidence && answer.tokens ? 'tokens' : '';
    if (view.reference) redraw(words, ...difference(view.reference.text, answer.text));
    else if (view.confidence && answer.tokens) redraw(words, ...answer.tokens.map(token));
    else redraw(words, ...(answer.parts ? this.parts(answer.parts) : markdown(answer.text)));
  }

  parts(parts) {
    return parts.flatMap(([part, words]) => {
      if (part === 'mark' || !words.trim()) return [];
      if (part === 'call') return [code(readable(words), t`Tool call`)];
      if (part === 'text') return markdown(words);
      return [h('details.s-thought', h('summary', t`Thought`), markdown(words.trim()))];
    });
  }
}

function readable(call) {
  try { return JSON.stringify(JSON.parse(call), null, 2); } catch { return call.trim(); }
}

function difference(before, after) {
  return diff(before, after).map(([kind, words]) =>
    kind === '=' ? document.createTextNode(words) : h(kind === '+' ? 'ins' : 'del', words));
}

function token([piece, logprob, others]) {
  const share = Math.exp(logprob);
  const line = ([words, value]) => `${percent(Math.exp(value)).padStart(6)}  ${JSON.stringify(words)}`;
  const title = [t`${percent(share)} sure (logprob ${logprob.toFixed(2)})`, ...others.map(line)].join('\n');
  return h('span.s-sure', { title, tabindex: '0', style: `--doubt:${(1 - share).toFixed(3)}` },
    piece);
}

function percent(share) {
  return share >= 0.9995 ? '100%' : share < 0.0005 ? '<0.1%' : `${(share * 100).toFixed(1)}%`;
}

/** The active adapters that its lane named; the others were added as those that they were trained on. */
function ownStack({ active, lane }) {
  const asked = lane && parseLane(lane).stack.map(({ name }) => name);
  return active.stack.filter(({ name }) => asked?.includes(name) ?? true);
}

/** Return true if an answer was made with other adapters or weights than its lane has now. */
export function isOld(answer, lane) {
  const key = (stack) => stack.filter((part) => part.weight).map((part) => `${part.name} ${part.weight}`).join();
  return Boolean(answer.reason && answer.active && lane) && key(ownStack(answer)) !== key(lane.stack);
}

/** The lane that made an answer: as it is now, or with the stack that was active then. */
export const answeredBy = (answer, lane) => (answer && isOld(answer, lane)
  ? { ...lane, stack: ownStack(answer) } : lane);

export function figures({ reason, tokens_count: tokens, tokens_per_second: speed,
  first_token_seconds: first, active, original }) {
  if (!reason) return '';
  const how = { length: t`cut at the limit`, stopped: word('stopped'), interrupted: word('interrupted') }[reason];
  const stack = active?.stack ?? [];
  const moved = active?.max_logit_difference;
  return dots(original != null && t`corrected`, tokens != null && t`${tokens} tokens`,
    speed && t`${number(speed, 3)} tok/s`,
    first != null && t`first after ${number(first, 2)} s`, how,
    active && (stack.map((part) => `${called(part.name)} × ${part.weight}`).join(' + ') || t`base`),
    stack.length > 0 && active.verified && t`changed logits by up to ${number(moved, 2)}`);
}
