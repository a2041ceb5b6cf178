// What a job made: the figures of an evaluation, a merge, an export or a judge, which the server lays out
// (jobs/outcome_figures.py), and the tables and pictures beside them. Also what a run forgot.

import { api, button, bytes, copy, count, duration, figures, go, h, newest, number, pairs, percent, quiet, redraw,
  scrolling, send, t, table } from './dom.js';
import { askAction } from './form.js';

/** Kinds of jobs on adapters, and how pages name them. */
export const KINDS = { merge: t`Merge`, mix: t`Mix`, import_adapter: t`Import`, export_adapter: t`Export`,
  gguf: 'GGUF', push: t`Push`, picture: t`Picture`, bakeoff: t`Bake-off`, promote: t`Promote`,
  evaluate: t`Evaluation`, tasks: t`Standard tasks` };
const OUTCOMES = {
  merge: certificate, mix: (_, { figures }) => (figures.length ? [pairs(figures)] : []), gguf: exported,
  export_adapter: exported, evaluate: evaluated, tasks: measuredTasks,
  picture: ({ changes }) => (changes?.length ? [heatmap(changes)] : []),
  judge: (found) => [trust(found), reasons(found)],
  push: ({ address }) => [h('p', t`Uploaded and verified: `, h('b', address ?? ''))],
};

/** Fill `node` with the outcome of an ended job. */
export async function outcome(job, node) {
  const wrong = job.error ? [h('p.s-error', job.error.text)] : [];
  const draw = (job.state === 'succeeded' || job.error?.kind === 'gate') && (OUTCOMES[job.kind] ?? facts);
  const found = await newest(node, draw ? api(`/api/outcome/${job.id}`).catch(() => null) : null);
  if (found !== undefined) redraw(node, ...wrong, ...(found ? draw(found.outcome, found) : []));
}

/** Figures and more, folded under the first of them among other jobs. */
const folded = ({ figures: [first] }, ...inside) => [h('details.s-evaluation', {
  open: location.pathname.endsWith('/runs') }, h('summary', first.join(' ')), inside)];

/** The figures of an evaluation, and which labels were taken for which. */
function evaluated({ general, sources, confusions: confused, labels }, made) {
  return folded(made, pairs(made.figures), general ? forgettingCard(general) : '', sources ? bySource(sources) : '',
    confused ? confusions(labels, confused) : '');
}

/** The rows of each source of a mix, and the loss (or reward) of those held out. */
export const bySource = (sources) => table([t`Source`, t`Rows`, ...('held_out' in sources[0] ? [t`Held out`] : []),
  'reward' in sources[0] ? t`Reward` : t`Loss`], sources.map((one) => [one.name, count(one.rows),
  ...('held_out' in one ? [count(one.held_out)] : []), number(one.reward ?? one.eval_loss)]),
{ class: 's-table s-numbers' });

/** What lm-eval measured: a column per lane, and the first documents with the lanes' answers. */
function measuredTasks({ names, examples }, made) {
  const [heads, rows, note] = made.table;
  return folded(made, scrolling(table(heads, rows)), quiet(note), examples.length
    ? h('details', h('summary', t`First documents and answers`), scrolling(
      table([t`Task`, t`End of the prompt`, t`Wanted`, ...names], examples.map((one) => [one.task,
        one.prompt.slice(-160), one.wanted, ...one.answers])))) : '');
}

/** Plain figures of any other outcome: its numbers and texts with their units. */
function facts(found) {
  const shown = (name, value) => (/bytes$/.test(name) ? bytes(value) : /seconds$/.test(name) ? duration(value)
    : Number.isInteger(value) ? count(value) : typeof value === 'number' ? number(value)
      : value === true ? t`yes` : value);
  const rows = Object.entries(found).filter(([name, value]) => ['number', 'string', 'boolean'].includes(typeof value)
    && value !== '' && value !== false && !['id', 'hash', 'kind', 'state', 'notes'].includes(name))
    .map(([name, value]) => [name.charAt(0).toUpperCase() + name.slice(1).replaceAll('_', ' '), shown(name, value)]);
  const { rows: counts, warnings = [] } = found.report ?? {};
  return [pairs([...rows, counts?.dropped > 0 && [t`Dropped`, t`${count(counts.dropped)} of ${count(counts.read)}`]]),
    ...warnings.map((words) => quiet(words))];
}

const written = (folder, ...links) => h('p', h('span.s-path', folder), ' ', links, ' ',
  button(t`Push to the hub …`, () => askAction('push', { fixed: { folder } }), 's-tool'));

/** What an export wrote, and how it compared when it was read back. */
function exported({ out }, { id, figures }) {
  const path = button(t`Copy path`, () => copy(out, path), 's-tool');
  return [figures.length ? h('div', { testid: 'export-check' }, pairs(figures)) : '', written(out, path, ' ',
    h('a', { href: `/api/download/job/${id}`, download: '' }, t`Download`))];
}

/** The certificate: the written files were loaded by a fresh process and answered like the stack. */
function certificate({ out }, { figures }) {
  if (!figures.length) return [quiet(t`Merged into ${out}; its certificate is missing.`)];
  return [h('details.s-certificate', { testid: 'certificate' },
    h('summary', t`Certificate: reloaded, it answers like the stack; largest logit error ${figures[0][1]}`),
    pairs(figures)), written(out, h('a', { href: `/compare?lane=${encodeURIComponent(out)}` }, t`Chat with it`))];
}

// -- a judge --

/** How far a judge can be trusted, of a judgement as the action `judge` shows it. */
export const trust = ({ evidence, why, figures }) => h('div.s-trust', { testid: 'trust' },
  !evidence && h('p.s-warning', why), pairs(figures));

const WORDS = { 0: 'A', 1: 'B', tie: t`tie`, null: t`no verdict` };

/** The pairs with the judge's reasons, fetched when opened. */
export function reasons({ id }) {
  const body = scrolling();
  return h('details', { ontoggle: async (event) => {
    if (!event.target.open || body.firstChild) return;
    const found = await send('/api/do/judge', { show: String(id) });
    if (!found) return;
    body.append(table([t`Prompt`, t`Answer A`, t`Answer B`, t`Your vote`, t`Verdict`, t`Reasons`],
      found.rows.map((row) => [row.prompt, ...row.answers, WORDS[row.vote] ?? '', WORDS[row.winner],
        row.reasons.length ? row.reasons.join('\n\n') : quiet(t`Equal answers, not asked`)]),
    { class: 's-table s-reasons' }));
  } }, h('summary', t`Verdicts and reasons`), body);
}

/** Ask for a dataset of a judge's verdicts; only one that counts as evidence has them. */
export const verdictsDataset = ({ id }) => button(t`Make a dataset …`, () => askAction('data.votes', {
  fixed: { source: String(id) }, only: ['kind', 'name'], note: t`Pairs, answers or verdicts of this judge, to train on.
    Your own votes are not among them.`, done: ({ name }) => { go(`/data?name=${name}`); } }), 's-tool');

// -- tinted tables --

/** A table of tinted cells. `cell(row, column)`, by place: {share (0 to 1), words, title}, or null for none. */
export const heatTable = (corner, columns, rows, cell, kind = '') => scrolling(table([corner, ...columns],
  rows.map((row, i) => [h('th', { scope: 'row' }, row), ...columns.map((_, j) => tinted(cell(i, j)))]),
  { class: `s-heat ${kind}` }));

const tinted = (found) => (found ? h('td', { style: `--share:${(100 * found.share).toFixed(1)}%`,
  'data-dark': found.share > 0.55, title: found.title }, found.words) : h('td', '–'));

const MOST_LABELS = 12, MOST_CONFUSIONS = 20;

/** The whole table for few labels, else the most frequent confusions. */
function confusions(labels, all) {
  const few = labels.length <= MOST_LABELS, most = Math.max(...all.map(([, , times]) => times));
  const times = (i, j) => all.find(([wanted, given]) => wanted === labels[i] && given === labels[j])?.[2] ?? 0;
  return h('div', { testid: 'confusions' }, few ? heatTable(t`Right ↓ taken for →`, labels, labels, (i, j) => ({
    share: times(i, j) / most, words: count(times(i, j)) }))
    : table([t`Right label`, t`Taken for`, t`Rows`], all.filter(([wanted, given]) => wanted !== given)
      .slice(0, MOST_CONFUSIONS)));
}

/** What an adapter changed per layer and module. `changes`: [{layer, module, norm, relative, effective_rank}]. */
export function heatmap(changes) {
  const layers = [...new Set(changes.map((one) => one.layer))].sort((a, b) => a - b);
  const modules = [...new Set(changes.map((one) => one.module))];
  const cells = new Map(changes.map((one) => [`${one.layer} ${one.module}`, one]));
  const strongest = changes.reduce((a, b) => (b.norm > a.norm ? b : a));
  const size = (one) => (one.relative ? percent(one.norm) : number(one.norm, 3));
  const place = (one) => (one.layer < 0 ? one.module : t`layer ${one.layer}, ${one.module}`);
  const cell = (i, j) => {
    const one = cells.get(`${layers[i]} ${modules[j]}`), rank = one?.effective_rank;
    return one && { share: Math.sqrt(one.norm / Math.max(strongest.norm, 1e-12)), // small changes stay visible
      title: `${place(one)}: ${one.relative ? t`changed by` : t`size`} ${size(one)}`
        + (rank == null ? '' : t`, effective rank ${number(rank, 3)}`),
      words: [rank == null ? '' : number(rank, 2), h('span.s-hidden', size(one))] };
  };
  return h('figure.s-heatmap', heatTable(t`Layer`, modules.map((module) => h('th', { scope: 'col', title: module },
    h('span', module.split('.').slice(-2).join('.')))), layers.map((layer) => (layer < 0 ? t`outside` : layer)), cell),
  h('figcaption.s-quiet', changes.some((one) => one.relative)
    ? t`Colour: size of the change against the weight it changes, up to ${size(strongest)} (${
      place(strongest)}). Number: effective rank of the change.`
    : t`Colour: root mean square of its own numbers, up to ${size(strongest)}. Number: effective rank.`));
}

// -- forgetting --

const chance = (loss) => percent(Math.exp(-loss), 2);
const range = (pair) => (pair ? t`95\u202f%: ${number(pair[0], 3)} to ${number(pair[1], 3)}` : '');

/** What a run forgot, as the run stores it; nothing for a run that was not measured. */
export function forgettingCard(found) {
  if (found?.loss_before == null) return '';
  return h('section.s-forgetting', { testid: 'forgetting' }, h('h2', t`What it forgot`), figures([
    [t`Distance from the base`, number(found.forgetting, 3), found.forgetting == null ? t`not measured`
      : t`0 is the base: KL divergence per token of its own answers, in nats; ${range(found.interval)}`],
    [t`Answers changed`, t`${count(found.changed)} of ${count(found.prompts)}`, t`greedy, to neutral prompts`],
    [t`Loss on general texts`, `${number(found.loss_before, 3)} → ${number(found.loss_after, 3)}`,
      t`a right token had a chance of ${chance(found.loss_before)}, now ${chance(found.loss_after)}`],
  ], ''),
  h('details', h('summary', t`By domain`),
    table([t`Texts`, t`Loss before`, t`After`], Object.entries(found.domains).map(([name, [before, after]]) =>
      [name, number(before, 3), number(after, 3)]), { class: 's-table s-numbers' })),
  quiet(t`Measured in ${number(found.seconds, 2)}\u202fs on ${count(found.rows)} texts of ${
    found.set === 'embedded' ? t`the embedded general set` : found.set}, which the training data does not touch.`));
}
