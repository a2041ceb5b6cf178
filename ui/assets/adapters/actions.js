// Dialogs that merge, mix, import, export and push adapters, each of which queues a job; and what such
// a job made: the certificate of a merge, the error of a mix, the check of an export.

import { api, button, bytes, copy, count, duration, h, newest, number, pairs, percent, quiet, redraw, short, t,
  table } from '../core/dom.js';
import { forgettingCard } from '../core/forgetting.js';
import { askAction } from '../core/form.js';
import { reasons, trust } from '../core/judgement.js';
import { heatmap } from './heatmap.js';

/** What every dialog on a stack of adapters begins with. */
const stacked = (page, adapters) => ({ known: page, stack: adapters,
  values: { 'model.path': adapters.find((one) => one.base)?.base ?? page.models[0]?.path } });

/** Return why adapters cannot be merged together; empty if they can. */
export function unmergeable(adapters) {
  const never = adapters.find((one) => !one.mergeable);
  if (never) return t`${never.method_title} cannot be merged into the weights.`;
  return new Set(adapters.map((one) => one.base)).size > 1 ? t`These adapters are of different bases.` : '';
}

/** Those that can join others in one stack. */
const joining = (page, [first]) => ({ models: page.models,
  adapters: page.adapters.filter((one) => one.mergeable && (!first || one.base === first.base)) });

export const askMerge = (page, adapters) => askAction('merge', { ...stacked(page, adapters),
  known: joining(page, adapters) });

export const askMix = (page, adapters) => askAction('mix', { ...stacked(page, adapters),
  known: { models: page.models, adapters: joining(page, adapters).adapters.filter((one) => one.is_low_rank) } });

/** Measure adapters on a dataset; without any the base. */
export const askEvaluate = (page, adapters) => askAction('evaluate', { ...stacked(page, adapters),
  bare: true });

export const askImport = (page) => askAction('import', { known: page });

/** Export one adapter in any format, or several as one GGUF. */
export function askExport(page, adapters) {
  const [one] = adapters;
  if (adapters.length > 1) return askAction('gguf', { ...stacked(page, adapters), known: joining(page, adapters) });
  return askAction('export', { known: page, fixed: { name: one.path }, title: t`Export “${one.name}”`,
    allow: { form: one.formats }, values: { form: one.formats[0] } });
}

// -- outcomes --

export const KINDS = { merge: t`Merge`, mix: t`Mix`, import_adapter: t`Import`, export_adapter: t`Export`,
  gguf: 'GGUF', push: t`Push`, picture: t`Picture`, bakeoff: t`Bake-off`, promote: t`Promote`,
  evaluate: t`Evaluation`, tasks: t`Standard tasks` };
const OUTCOMES = {
  merge: certificate, mix: (found) => (found.how ? [mixed(found)] : []), gguf: exported, export_adapter: exported,
  picture: ({ changes }) => (changes?.length ? [heatmap(changes)] : []), evaluate: evaluated,
  tasks: measuredTasks,
  judge: (found) => [trust(found), reasons(found)],
  push: ({ address }) => [h('p', t`Uploaded and verified: `, h('b', address ?? ''))],
};

/** Fill `node` with the outcome of an ended job. */
export async function outcome(job, node) {
  const wrong = job.error ? [h('p.s-error', job.error.text)] : [];
  const draw = (job.state === 'succeeded' || job.error?.kind === 'gate') && (OUTCOMES[job.kind] ?? facts);
  const found = await newest(node, draw ? api(`/api/outcome/${job.id}`).catch(() => null) : null);
  if (found !== undefined) redraw(node, ...wrong, ...(found ? draw(found.outcome, job.id) : []));
}

/** The figures of an evaluation, and which labels were taken for which; closed among other jobs. */
function evaluated(found) {
  const scores = Object.entries(found.scores ?? {}).map(([name, value]) => [name.replace('_', ' '), percent(value)]);
  const [low, high] = found.accuracy_interval ?? [];
  const figures = pairs([[t`Rows`, count(found.rows)], [t`Loss`, number(found.eval_loss)],
    [t`Perplexity`, number(found.perplexity)], [t`Token accuracy`, percent(found.token_accuracy)],
    found.accuracy != null && [t`Accuracy`, t`${percent(found.accuracy)} (95\u202f%: ${
      percent(low)} to ${percent(high)}), ${count(found.labels.length)} labels`],
    found.accuracy != null && [t`Macro F1`, number(found.macro_f1, 3)],
    found.accuracy != null && [t`Calibration error`, number(found.ece, 3)],
    found.mae != null && [t`As numbers`, t`mean absolute error ${number(found.mae, 3)}, root mean squared ${
      number(found.rmse, 3)}, correlation ${number(found.pearson, 3)}`], ...scores]);
  const head = found.accuracy == null ? t`Loss ${number(found.eval_loss)}` : t`Accuracy ${percent(found.accuracy)}`;
  return [h('details.s-evaluation', { open: location.pathname.endsWith('/runs') },
    h('summary', head), figures, found.general ? forgettingCard(found.general) : '',
    found.sources ? bySource(found.sources) : '', found.confusions ? confusions(found) : '')];
}

/** The rows of each source of a mix, and the loss (or reward) of those held out. */
export const bySource = (sources) => table([t`Source`, t`Rows`, ...('held_out' in sources[0] ? [t`Held out`] : []),
  'reward' in sources[0] ? t`Reward` : t`Loss`], sources.map((one) => [one.name, count(one.rows),
  ...('held_out' in one ? [count(one.held_out)] : []), number(one.reward ?? one.eval_loss)]),
{ class: 's-table s-numbers' });

/** What lm-eval measured: a column per lane, and the first documents with the lanes' answers. */
function measuredTasks({ names, tasks, examples }) {
  const cell = ({ values, errors, differences }, place) => {
    const [gap, low, high] = (differences[place] ?? []).map((one) => number(one, 3));
    return h('td.s-number', number(values[place]),
      errors[place] == null ? '' : quiet(`± ${number(errors[place], 2)}`),
      gap == null ? '' : quiet(t`${gap} (${low} to ${high})`));
  };
  const rows = tasks.map((one) => [one.task, one.metric, count(one.documents),
    ...names.map((_, place) => cell(one, place))]);
  const [first] = tasks;
  const head = `${first.task}: ${first.metric} ${first.values.map((one) => number(one)).join(', ')}`;
  return [h('details.s-evaluation', { open: location.pathname.endsWith('/runs') }, h('summary', head),
    h('div.s-scroll', table([t`Task`, t`Figure`, t`Documents`, ...names], rows)),
    quiet(t`Second line: standard error.${names.length > 1
      ? t` Third: difference from ${names[0]} over the same documents, with its 95\u202f% interval.` : ''}`),
    examples.length ? h('details', h('summary', t`First documents and answers`), h('div.s-scroll',
      table([t`Task`, t`End of the prompt`, t`Wanted`, ...names], examples.map((one) => [one.task,
        one.prompt.slice(-160), one.wanted, ...one.answers])))) : '')];
}

const MOST_LABELS = 12, MOST_CONFUSIONS = 20;

/** The whole table for few labels, else the most frequent confusions. */
function confusions({ labels, confusions: all }) {
  const counts = new Map(all.map(([wanted, given, times]) => [`${wanted}\n${given}`, times]));
  if (labels.length > MOST_LABELS) {
    const wrong = all.filter(([wanted, given]) => wanted !== given).slice(0, MOST_CONFUSIONS);
    return h('div', { testid: 'confusions' }, table([t`Right label`, t`Taken for`, t`Rows`], wrong,
      { class: 's-table s-confusions' }));
  }
  const most = Math.max(...counts.values());
  const cells = (wanted) => labels.map((given) => {
    const times = counts.get(`${wanted}\n${given}`) ?? 0;
    return h('td', { class: times / most > 0.55 ? 's-heat s-heat-dark' : 's-heat',
      style: `--share:${100 * times / most}%` }, count(times));
  });
  return h('div.s-scroll.s-heatmap', { testid: 'confusions' },
    table([t`Right ↓ taken for →`, ...labels],
      labels.map((wanted) => [h('th', { scope: 'row' }, wanted), ...cells(wanted)]), { class: '' }));
}

/** Plain figures of any other outcome: its numbers and texts with their units. */
export function facts(found) {
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

const written = (folder, ...links) => h('p', h('span.s-path', folder), ' ', links,
  button(t`Push to the hub …`, () => askAction('push', { fixed: { folder } }), 's-tool'));

/** What an export wrote, and how it compared when it was read back. */
function exported({ check, out }, job) {
  const compared = check?.max_error != null;
  const words = [compared && t`Read back: largest logit error ${number(check.max_error, 2)} (allowed ${
    number(check.tolerance, 2)}), ${check.tokens_changed} of ${check.tokens_compared} tokens changed.`,
  check?.note, ...(check?.notes ?? [])].filter(Boolean).join(' ');
  const path = button(t`Copy path`, () => copy(out, path), 's-tool');
  return [words ? h('p', { testid: 'export-check' }, words) : '', written(out, path, ' ',
    h('a', { href: `/api/download/job/${job}`, download: '' }, t`Download`))];
}

function mixed({ how, error, adapter }) {
  const exact = how === 'concatenate';
  return h('p', t`"${short(adapter)}" is ${exact ? t`exactly the weighted sum` : how.toUpperCase()}, `,
    h('b', percent(error, 2)),
    exact ? t` away from it by rounding.` : t` away from the weighted sum (truncation included).`);
}

/** The certificate: the written files were loaded by a fresh process and answered like the stack. */
function certificate({ certificate: found, out }) {
  if (!found || found.max_error === undefined) return [quiet(t`Merged into ${out}; its certificate is missing.`)];
  const error = t`${number(found.max_error, 2)} (allowed ${number(found.tolerance, 2)})`;
  return [h('details.s-certificate', { testid: 'certificate' },
    h('summary', t`Certificate: reloaded, it answers like the stack; largest logit error ${error}`),
    pairs([
      [t`Largest logit error`, error], [t`Mean logit error`, number(found.mean_error, 2)],
      [t`Tokens changed`, t`${found.tokens_changed} of ${found.tokens_compared}`],
      [t`Precision`, t`${found.base_precision} base, ${found.merged_precision} result`],
      [t`Merged`, found.merged.join(', ')],
      found.left.length && [t`Stays an adapter`, found.left.map(short).join(', ')],
      found.notes?.length && [t`Note`, found.notes.join(' ')],
      [t`Files`, found.files?.slice(0, 16)],
    ])),
  written(out, h('a', { href: `/compare?lane=${encodeURIComponent(out)}` }, t`Chat with it`), ' ')];
}
