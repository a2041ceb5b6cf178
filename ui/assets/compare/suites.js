// Prompt suites: the same prompts sent to every lane as a queued job, and the table of scores.

import { ago, api, badge, button, changed, count, h, keyed, newest, number, percent, quiet, redraw, scrolling, send, t,
  table, text, toast } from '../core/dom.js';
import { askAction } from '../core/form.js';
import { laneName, parseLane } from '../core/lanes.js';
import { isLive } from '../core/live.js';
import { reasons, trust, verdictsDataset } from '../core/outcome.js';
import { sendFile } from '../core/upload.js';
import { exports, heat } from './votes.js';

const EXAMPLE = 'What is the capital of France? => Paris\nWhat sound does a cow make? =~ (?i)moo\nTell me a story.';
const FORMATS = { share: (value) => percent(value, 2), s: (value) => (value == null ? '–' : `${number(value, 2)} s`) };

export class Suites {
  constructor(page) {
    this.page = page;
    this.cases = h('textarea', { rows: 6, label: t`Prompts of the suite`, placeholder: EXAMPLE,
      testid: 'suite-cases' });
    this.name = h('input', { label: t`Name of the suite`, placeholder: t`Name (optional)`, maxLength: 120 });
    const file = h('input', { type: 'file', hidden: true, testid: 'suite-file', onchange: () => this.take(file) });
    this.list = h('div.s-suites');
    this.answers = h('div.s-board');
    this.judged = h('div.s-board');
    this.hint = quiet();
    this.parts = [h('div.s-tab-head', h('h2', t`Prompt suites`), h('span.s-quiet',
      t`The same prompts to every lane, as a queued job; answers are scored against the expected ones.`)),
    h('div.s-suite-form', this.cases, h('div.s-tab-head', this.name,
      this.read = button(t`From a file …`, () => file.click(), '',
        { title: 'txt, csv, tsv, xlsx, json, jsonl, parquet' }), file, h('span.s-grow'),
      button(t`Run over all lanes`, () => this.run(), 's-primary', { testid: 'run-suite' })),
    this.hint), this.list, h('div.s-board', { testid: 'suite' }, this.answers, this.judged)];
  }

  explain() {
    const lanes = this.page.conversation.lanes.map(laneName).join('  ·  ');
    text(this.hint, t`One prompt per line. “prompt => answer” gives the expected answer, “prompt =~ pattern” a regular
      expression; or one JSON object per line, with prompt and expected, pattern or json_schema. Lanes: ${lanes}`);
  }

  async show(element) {
    this.explain();
    element.replaceChildren(...this.parts);
    await this.refresh();
  }

  /** Put the prompts of a file, of any kind that Data reads, into the field. */
  async take(file) {
    const [picked] = file.files;
    this.read.disabled = true;
    try {
      const path = await sendFile(picked, { onProgress: (words) => text(this.hint, words) });
      const { cases, left_out: left } = await api('/api/do/suite', { file: path, check: true });
      this.cases.value = cases.map(line).join('\n');
      this.name.value ||= picked.name.replace(/\.\w+$/, '');
      text(this.hint, t`${count(cases.length)} prompts of ${picked.name}, ${
        count(cases.filter(expects).length)} with an expected answer. ${left.length
        ? t`${left.length} rows are left out; line ${left[0].line}: ${left[0].text}` : ''}`);
    } catch (error) { this.explain(); toast(error.message, 'error'); }
    file.value = '';
    this.read.disabled = false;
  }

  async run() {
    const { conversation } = this.page;
    const lanes = conversation.lanes.map(({ model, stack }, lane) => {
      const { system, sampling } = conversation.settingsOf(lane);
      return { model, stack, system, sampling };
    });
    const job = await send('/api/do/suite', { name: this.name.value, cases: this.cases.value, lane: lanes });
    if (!job) return;
    this.open = job.id;
    await this.refresh();
  }

  async refresh() {
    clearTimeout(this.timer);
    const found = await newest(this, this.look());
    if (!found) return;
    const { all, suite, judgements } = found;
    const row = (one) => [h('td', { class: one.id === this.open && 's-chosen' }, button(one.name, () => {
      this.open = one.id;
      this.refresh();
    }, 's-tool')), badge(one.state), h('td.s-quiet', isLive(one)
      ? t`${one.step} of ${one.total_steps} prompts`
      : t`${one.total_steps} prompts · ${one.lanes.length} lanes · ${ago(one.created)}`),
    h('td.s-error', one.error)];
    redraw(this.list, table(null, all.map(row)));
    if (!suite) return;
    if (changed(this.answers, JSON.stringify(suite))) redraw(this.answers, ...results(suite, (cases) => {
      this.cases.value = cases;
    }), this.judging(suite));
    keyed(this.judged, judgements, ({ id }) => id,
      () => h('section.s-card.s-judgement', { testid: 'judgement' }),
      (node, one) => changed(node, JSON.stringify(one)) && redraw(node, ...judgement(one)));
    if ([suite, ...judgements].some(isLive) && this.list.isConnected && !this.list.closest('[hidden]')) {
      this.timer = setTimeout(() => this.refresh(), 1500);
    }
  }

  /** The suites, the open one, its judgements. */
  async look() {
    const all = await send('/api/do/suite', {});
    if (!all) return null;
    if (!all.some((one) => one.id === this.open)) this.open = all[0]?.id;
    const suite = this.open == null ? null : await send('/api/do/suite', { show: String(this.open) });
    const judged = suite?.lanes.length > 1 && suite.rows.length ? await send('/api/do/judge', {}) ?? [] : [];
    return { all, suite, judgements: judged.filter((one) => one.suite === suite.id) };
  }

  judging(suite) {
    if (suite.lanes.length < 2 || !suite.rows.length) return '';
    const { models } = this.page.choices;
    const lanes = new Map([...models.map(({ path, label }) => [path, label]),
      ...suite.lanes.map((lane) => [lane, laneName(parseLane(lane))])]);
    const ask = () => askAction('judge', { fixed: { suite: suite.id }, choices: { lane: [...lanes] },
      only: ['lane', 'address', 'model', 'allow_remote', 'rubric', 'votes', 'min_agreement', 'max_new_tokens',
        'seconds', 'name'], done: () => { this.refresh(); } });
    return h('div.s-tab-head', h('h3', t`Judged by a model`), h('span.s-grow'),
      button(t`Judge …`, ask, '', { title: t`A model compares the answers in pairs`, testid: 'ask-judge' }));
  }
}

const expects = (one) => one.expected || one.pattern || one.json_schema;

/** Return a case as it is typed; as JSON where its parts could be read as others. */
export function line(one) {
  const { prompt, expected, pattern } = one, typed = pattern ? `${prompt} =~ ${pattern}`
    : expected ? `${prompt} => ${expected}` : prompt;
  return one.json_schema || one.before?.length || one.tools?.length || /\n|^\s*\{/.test(typed)
    || typed.split(/ => | =~ /).length > 1 + Boolean(expected || pattern) ? JSON.stringify(one) : typed;
}

function judgement(found) {
  const state = isLive(found) ? t`${found.step} of ${count(found.total_steps)} pairs` : ago(found.created);
  return [h('div.s-tab-head', h('h4', found.name), badge(found.state), h('span.s-quiet',
      state), h('span.s-grow'), found.evidence && verdictsDataset(found)),
  found.error ? h('p.s-error', found.error) : '',
  ...(found.step ? [trust(found), found.lanes.length ? heat(found.lanes, found.wins) : '', reasons(found)] : [])];
}

function results(suite, reuse) {
  const cases = suite.spec.cases.map(line).join('\n');
  const head = h('div.s-tab-head', h('h3',
    t`${suite.name}: ${suite.cases} of ${suite.total} prompts`),
    button(t`Use these prompts again`, () => reuse(cases), 's-tool'), h('span.s-grow'),
    exports(`suite-${suite.id}`));
  if (!suite.rows.length) return [head, quiet(suite.error ?? t`No answer yet.`)];
  const shown = suite.columns.filter(({ key }) => suite.means.some((one) => one[key] != null
    && (key !== 'json' || one[key] > 0 || suite.spec.cases.some((asked) => asked.json_schema))));
  const names = suite.lanes.map((lane) => laneName(parseLane(lane)));
  const means = table([t`Lane`, ...shown.map(({ title, hint }) => h('th', { title: hint }, title))],
    suite.means.map((one, i) => [names[i], ...shown.map(({ key, unit }) => h('td', { class: `s-figure ${
      (unit === 'share' || key === 'tokens_per_second') && best(suite.means, key, one) ? 's-best' : ''}` },
    (FORMATS[unit] ?? ((value) => number(value, 3)))(one[key])))]));
  const scored = suite.spec.cases.some(expects);
  const answers = table(['', t`Prompt`, t`Expected`, ...names], suite.rows.map((row) => [row.case + 1, row.prompt,
    row.expected ?? row.pattern ?? row.json_schema ?? '', ...row.answers.map(answer)]),
  { class: 's-table s-answers-table' });
  return [head, means, ...(scored ? [h('h3', t`Wins of the row against the column`), heat(suite.lanes,
    suite.wins)] : []),
    scored ? quiet(t`Green answers fit the pattern or schema, or equal the expected answer; red ones do not. A tie is
      half a win.`) : '', scrolling(answers)];
}

function answer({ pattern, json_schema: schema, exact_match: exact, error, text, thought }) {
  return h('td', { 'data-good': pattern ?? schema ?? exact, class: error && 's-error' },
    thought && h('details.s-thought', h('summary', t`Thought`), thought), error ?? text);
}

/** Return true if no lane has more and some have less. */
function best(means, key, one) {
  const values = means.map((lane) => lane[key]).filter((value) => value != null);
  const top = Math.max(...values);
  return one[key] === top && values.some((value) => value < top);
}
