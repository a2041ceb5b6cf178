// Votes on a turn: one bar under its answers, number keys, and names that appear once it is cast.

import { api, button, h, text, toast } from './dom.js';

/** Whether a turn's lanes are still covered: it was asked blind and nobody has voted. */
export function hidden(turn) {
  return turn.answers.some((a) => a?.place != null) && !turn.answers.some((a) => a?.verdict);
}

export class Votes {
  constructor(page) {
    this.page = page;
    this.bars = new WeakMap();
  }

  bar(turn) {
    const words = h('span', { class: 's-quiet', role: 'status' });
    const choices = h('span', { class: 's-actions' });
    const element = h('div', { class: 's-vote', tabindex: '-1', 'data-testid': 'vote' }, words, choices);
    this.bars.set(turn, { element, words, choices });
    return element;
  }

  refresh(turn) {
    const bar = this.bars.get(turn);
    if (!bar) return;
    const done = turn.answers.length > 1 && turn.answers.every((answer) => answer?.reason);
    const answered = done && turn.answers.every((answer) => answer.reason !== 'error')
      && turn.answers.some((answer) => answer.text);
    const verdicts = turn.answers.map((answer) => answer?.verdict), voted = verdicts.some(Boolean);
    bar.element.hidden = !done || (!voted && !answered && !hidden(turn));
    const key = JSON.stringify([done, verdicts, hidden(turn), turn.answers.length]);
    if (bar.element.hidden || bar.key === key) return;
    bar.key = key;
    const won = verdicts.indexOf('won');
    text(bar.words, !voted ? 'Which is better?' : won >= 0 ? `You chose ${this.label(turn, won)}.`
      : verdicts.includes('bad') ? 'You found all of them bad.' : 'You called it a tie.');
    bar.choices.replaceChildren(...(voted ? [button('Vote again', () => this.takeBack(turn), 's-tool')]
      : [...this.order(turn).map((lane, i) => choice(this.label(turn, lane), i + 1,
        () => this.cast(turn, lane))),
      choice('Tie', 0, () => this.cast(turn, null)),
      choice(turn.answers.length > 2 ? 'All bad' : 'Both bad', 9, () => this.cast(turn, null, true))]));
  }

  /** The lanes as they stand on the page. */
  order(turn) {
    return turn.answers.map((_, lane) => lane)
      .sort((a, b) => (turn.answers[a].place ?? a) - (turn.answers[b].place ?? b));
  }

  label(turn, lane) {
    const { place } = turn.answers[lane];
    return place != null ? String(place + 1) : 'ABCDEF'[lane];
  }

  focus(turn) {
    const bar = this.bars.get(turn);
    bar?.element.focus({ preventScroll: true });
    bar?.element.scrollIntoView({ block: 'nearest' });
  }

  /** Number keys vote on the last turn, unless somebody is typing. */
  key(event) {
    const turn = this.page.talk.turns.at(-1);
    const typing = event.target.closest?.('input, textarea, select');
    if (!turn || typing || event.ctrlKey || event.metaKey || event.altKey || !/^\d$/.test(event.key)) return;
    const bar = this.bars.get(turn);
    const wanted = bar && !bar.element.hidden && bar.element.isConnected
      && bar.choices.querySelector(`[data-key="${event.key}"]`);
    if (wanted) { event.preventDefault(); wanted.click(); }
  }

  async cast(turn, winner, bad = false) {
    const { talk } = this.page, number = talk.turns.indexOf(turn);
    try {
      await api('/api/chat/vote', { conversation: talk.id, turn: number, prompt: turn.prompt, winner, bad,
        blind: hidden(turn), lanes: turn.answers.map((answer) => answer.lane),
        answers: turn.answers.map((answer) => answer.text) });
    } catch (error) { toast(error.message, 'error'); return; }
    turn.answers.forEach((answer, lane) => {
      answer.verdict = winner === null ? (bad ? 'bad' : 'tie') : lane === winner ? 'won' : 'lost';
    });
    await talk.save(number);
    const near = this.page.near();
    this.page.refresh(turn);
    if (near) this.page.toEnd();
    this.page.composer.focus();
  }

  async takeBack(turn) {
    const { talk } = this.page, number = talk.turns.indexOf(turn);
    try {
      await api('/api/chat/vote/back', { conversation: talk.id, turn: number });
    } catch (error) { toast(error.message, 'error'); return; }
    for (const answer of turn.answers) { delete answer.verdict; delete answer.place; }
    await talk.save(number);
    this.page.refresh(turn);
  }
}

function choice(label, key, act) {
  const node = button(label, act, '', { 'data-key': key, 'aria-keyshortcuts': key,
    title: `The key ${key} does the same` });
  node.append(h('kbd', { 'aria-hidden': 'true' }, String(key)));
  return node;
}
