// The leaderboard: a score with its 95 % interval for every lane that was voted on, and who beat whom.

import { api, h } from './dom.js';
import { laneName, parseLane } from './lane.js';

export async function board(element) {
  const blind = h('input', { type: 'checkbox', class: 's-box', onchange: () => draw() });
  const files = exports('votes');
  const body = h('div', { class: 's-board', 'data-testid': 'leaderboard' });
  element.replaceChildren(h('div', { class: 's-shelf-head' }, h('h2', {}, 'Leaderboard'),
    h('label', { class: 's-check' }, blind, 'Blind votes only'), h('span', { class: 's-grow' }),
    files), body);
  const draw = async () => {
    const { standings, lanes, wins, votes } = await api(`/api/chat/leaderboard?blind=${blind.checked}`);
    files.hidden = !standings.length;
    body.replaceChildren(...(standings.length ? [table(standings),
      h('p', { class: 's-quiet' }, `${votes} ${votes === 1 ? 'vote' : 'votes'}. Bradley-Terry scores around `
        + '1000: 400 points more means ten wins to one. The bar is the 95 % interval; where two bars '
        + 'overlap, the order may be chance.'),
      h('h3', {}, 'Wins of the row against the column (a tie is half)'), heat(lanes, wins)]
      : [h('p', { class: 's-quiet' }, 'No votes yet. Ask two or more lanes, then say which is better.')]));
  };
  await draw();
}

function table(standings) {
  const low = Math.min(...standings.map((s) => s.low)), high = Math.max(...standings.map((s) => s.high));
  const at = (value) => `${((value - low) / (high - low || 1) * 100).toFixed(2)}%`;
  const groups = new Set(standings.map((s) => s.group)).size > 1;
  return h('table', { class: 's-table' }, h('thead', {}, h('tr', {}, ['', 'Lane', 'Score', '95 % interval', '',
    'Won', 'Lost', 'Tied', 'Bad', groups && 'Group'].filter((w) => w !== false).map((w) =>
    h('th', { class: w === 'Won' ? 's-after-interval' : '' }, w)))),
  h('tbody', {}, standings.map((s, i) => h('tr', {}, h('td', {}, i + 1), h('td', { title: s.lane },
    laneName(parseLane(s.lane))), h('td', { class: 's-figure' }, s.score.toFixed(0)),
  h('td', { class: 's-figure' }, `${s.low.toFixed(0)} – ${s.high.toFixed(0)}`),
  h('td', { class: 's-interval' }, h('i', { style: `left:${at(s.low)};right:calc(100% - ${at(s.high)})` }),
    h('b', { style: `left:${at(s.score)}` })),
  [s.wins, s.losses, s.ties, s.bad].map((n) => h('td', { class: 's-figure' }, n)),
  groups && h('td', { title: 'Groups never met: their scores cannot be compared' }, s.group + 1)))));
}

/** A table whose cells are tinted by the share the row won against the column. */
export function heat(lanes, wins) {
  const names = lanes.map((lane) => laneName(parseLane(lane)));
  return h('div', { class: 's-scroll-x' }, h('table', { class: 's-heat' },
    h('thead', {}, h('tr', {}, h('th', {}), names.map((name) => h('th', {}, name)))),
    h('tbody', {}, wins.map((row, i) => h('tr', {}, h('th', {}, names[i]), row.map((won, j) => {
      const games = won + wins[j][i];
      if (i === j || !games) return h('td', { class: 's-quiet' }, '–');
      return h('td', { style: `--share:${(won / games).toFixed(3)}`,
        title: `${names[i]} won ${won} of ${games} against ${names[j]}` }, won % 1 ? won.toFixed(1) : String(won));
    }))))));
}

export function exports(what) {
  return h('span', { class: 's-quiet' }, 'Export ', ['csv', 'jsonl', 'html'].map((form) => [h('a',
    { href: `/api/chat/export/${what}.${form}`, download: '' }, form.toUpperCase()), ' ']).flat());
}
