// Votes on a turn (buttons and number keys; names are revealed afterwards) and the leaderboard.

import { button, go, h, newest, quiet, redraw, send, t, table, text } from '../core/dom.js';
import { askAction, box } from '../core/form.js';
import { laneName, LETTERS, parseLane } from '../core/lanes.js';
import { heatTable } from '../core/outcome.js';
import { instant } from '../runs/queue.js';

/** Return true if the turn's lanes are anonymous: prompted blind and without a vote. */
export const isBlind = ({ answers }) => answers.some((a) => a?.place != null) && !answers.some((a) => a?.verdict);

export class Votes {
  constructor(page) {
    this.page = page;
    this.bars = new WeakMap();
  }

  bar(turn) {
    const words = h('span.s-quiet', { role: 'status' });
    const choices = h('span.s-actions');
    const element = h('div.s-vote', { tabindex: '-1', testid: 'vote' }, words, choices);
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
    bar.element.hidden = !done || (!voted && !answered && !isBlind(turn));
    const key = JSON.stringify([done, verdicts, isBlind(turn), turn.answers.length]);
    if (bar.element.hidden || bar.key === key) return;
    bar.key = key;
    const won = verdicts.indexOf('won');
    text(bar.words, !voted ? t`Which is better?` : won >= 0 ? t`You chose ${this.label(turn, won)}.`
      : verdicts.includes('bad') ? t`You rejected all of them.` : verdicts.includes('tie') ? t`You called it a tie.`
        : t`The lane that you chose was removed.`);
    redraw(bar.choices, ...(voted ? [button(t`Vote again`, () => this.takeBack(turn), 's-tool')]
      : [...this.order(turn).map((lane, i) => choice(this.label(turn, lane), i < 8 ? i + 1 : null,
        () => this.cast(turn, lane))),
      choice(t`Tie`, 0, () => this.cast(turn, null)),
      choice(turn.answers.length > 2 ? t`All bad` : t`Both bad`, 9, () => this.cast(turn, null, true))]));
  }

  /** The lanes as they stand on the page. */
  order(turn) {
    return turn.answers.map((_, lane) => lane)
      .sort((a, b) => (turn.answers[a].place ?? a) - (turn.answers[b].place ?? b));
  }

  label(turn, lane) {
    const { place } = turn.answers[lane];
    return place != null ? String(place + 1) : LETTERS[lane];
  }

  focus(turn) {
    const bar = this.bars.get(turn);
    bar?.element.focus({ preventScroll: true });
    bar?.element.scrollIntoView({ block: 'nearest' });
  }

  /** Number keys vote on the last turn, outside text fields: a prompt may begin with a number. */
  key(event) {
    const turn = this.page.conversation.turns.at(-1);
    if (!turn || event.target.closest?.('input, textarea, select') || !/^\d$/.test(event.key)) return;
    const bar = this.bars.get(turn);
    const wanted = bar && !bar.element.hidden && bar.element.isConnected
      && bar.choices.querySelector(`[data-key="${event.key}"]`);
    if (wanted) { event.preventDefault(); wanted.click(); }
  }

  async cast(turn, winner, bad = false) {
    const { conversation } = this.page, number = conversation.turns.indexOf(turn);
    const verdict = winner === null ? (bad ? 'bad' : 'tie') : LETTERS[winner];
    if (!await send('/api/do/vote', { conversation: conversation.id, turn: number + 1, verdict,
      blind: isBlind(turn), shown: turn.answers.map((answer) => answer?.text ?? '') })) return;
    turn.answers.forEach((answer, lane) => {
      answer.verdict = winner === null ? (bad ? 'bad' : 'tie') : lane === winner ? 'won' : 'lost';
    });
    await conversation.save(number);
    const near = this.page.near();
    this.page.refresh(turn);
    if (near) this.page.toEnd();
    this.page.composer.focus();
  }

  async takeBack(turn) {
    const { conversation } = this.page, number = conversation.turns.indexOf(turn);
    if (!await send('/api/do/vote', { conversation: conversation.id, turn: number + 1, verdict: 'none' })) return;
    for (const answer of turn.answers) { delete answer.verdict; delete answer.place; }
    await conversation.save(number);
    this.page.refresh(turn);
  }
}

function choice(label, key, act) {
  if (key === null) return button(label, act);
  return button([h('kbd', { 'aria-hidden': 'true' }, String(key)), label], act, '', { 'data-key': key,
    'aria-keyshortcuts': key, title: t`The key ${key} does the same` });
}

/** The server refuses a time without a day. */
const dayOf = (words, days = 0) => (/^\d{4}/.test(words) ? instant(words, Date.now(), days) : words);

/** Ask which votes or conversations become a dataset, and open it on the Data page. */
export const makeDataset = (values, lanes = []) => askAction('data.votes', { values,
  sent: ({ since, until, ...own }) => ({ ...own, since: dayOf(since), until: dayOf(until, 1) }),
  choices: lanes.length ? { lane: [['', t`any lane`], ...lanes.map((lane) => [lane, laneName(parseLane(lane))])] } : {},
  done: ({ name }) => { go(`/data?name=${name}`); } });

export async function leaderboard(element) {
  let known = [];
  const blind = box({ onchange: () => draw() });
  const files = exports('votes');
  const make = button(t`Make a dataset …`, () => makeDataset({ blind: blind.checked }, known), '', {
    title: t`Pairs, answers or verdicts from these votes, to train on` });
  const body = h('div.s-board', { testid: 'leaderboard' });
  element.replaceChildren(h('div.s-tab-head', h('h2', t`Leaderboard`),
    h('label.s-check', blind, t`Blind votes only`), h('span.s-grow'), make, files), body);
  const draw = async () => {
    const found = await newest(body, send('/api/do/leaderboard', { blind: blind.checked }));
    if (!found) return;
    const { standings, lanes, wins, votes } = found;
    files.hidden = make.hidden = !standings.length;
    known = lanes;
    redraw(body, ...(standings.length ? [scores(standings),
      quiet(t`${votes} ${votes === 1 ? 'vote' : 'votes'}. Bradley-Terry scores around 1000: 400 points more means ten
        wins to one. The bar is the 95 % interval; where two bars overlap, the order may be chance.`),
      h('h3', t`Wins of the row against the column (a tie is half)`), heat(lanes, wins)]
      : [quiet(t`No votes yet. Prompt two or more lanes, then choose the better answer.`)]));
  };
  await draw();
}

function scores(standings) {
  const low = Math.min(...standings.map((s) => s.low)), high = Math.max(...standings.map((s) => s.high));
  const at = (value) => `${((value - low) / (high - low || 1) * 100).toFixed(2)}%`;
  const groups = new Set(standings.map((s) => s.group)).size > 1;
  const figure = (value) => h('td.s-figure', value);
  return table(['', t`Lane`, t`Score`, t`95 % interval`, '', h('th.s-after-interval', t`Won`), t`Lost`,
    t`Tied`, t`Bad`, ...(groups ? [t`Group`] : [])], standings.map((s, i) => [i + 1,
    h('td', { title: s.lane }, laneName(parseLane(s.lane))), figure(s.score.toFixed(0)),
    figure(`${s.low.toFixed(0)} – ${s.high.toFixed(0)}`),
    h('td.s-interval', h('i', { style: `left:${at(s.low)};right:calc(100% - ${at(s.high)})` }),
      h('b', { style: `left:${at(s.score)}` })),
    ...[s.wins, s.losses, s.ties, s.bad].map(figure),
    ...(groups ? [h('td', { title: t`Lanes of different groups never met: their scores cannot be compared` },
      s.group + 1)]
      : [])]));
}

/** A table whose cells are tinted by the share the row won against the column. */
export function heat(lanes, wins) {
  const names = lanes.map((lane) => laneName(parseLane(lane)));
  return heatTable('', names, names, (i, j) => {
    const won = wins[i][j], games = won + wins[j][i];
    return i === j || !games ? null : { share: won / games, words: won % 1 ? won.toFixed(1) : won,
      title: t`${names[i]} won ${won} of ${games} against ${names[j]}` };
  }, 's-wins');
}

export const exports = (what) => h('span.s-quiet', t`Export `, ['csv', 'jsonl', 'html'].flatMap((form) =>
  [h('a', { href: `/api/chat/export/${what}.${form}`, download: '' }, form.toUpperCase()), ' ']));
