// Prompt suites: the same prompts sent to every lane as a queued job, and the table of scores.

import { ago, api, badge, button, count, h, number, toast } from '../core/dom.js';
import { laneName, parseLane } from '../core/lanes.js';
import { exports, heat } from './votes.js';

const EXAMPLE = 'What is the capital of France? => Paris\nWhat sound does a cow make? =~ (?i)moo\nTell me a story.';
const COLUMNS = [['exact_match', 'Exact', share, 'Answers that are the wanted one'],
  ['rouge_l', 'ROUGE-L', share, 'Words in common with the wanted answer, in its order'],
  ['pattern', 'Pattern', share, 'Answers that the regular expression finds'],
  ['json', 'JSON', share, 'Answers that are valid JSON'], ['tokens', 'Tokens', (v) => number(v, 3)],
  ['tokens_per_second', 'tok/s', (v) => number(v, 3)],
  ['first_token_seconds', 'First token', (v) => (v == null ? '–' : `${number(v, 2)} s`)], ['errors', 'Errors', count]];
const LIVE = ['queued', 'starting', 'running', 'stopping'];

export class Suites {
  constructor(page) { this.page = page; }

  async show(element) {
    clearTimeout(this.timer);
    this.cases = h('textarea', { rows: 6, 'aria-label': 'Prompts of the suite', placeholder: EXAMPLE,
      'data-testid': 'suite-cases' });
    this.name = h('input', { 'aria-label': 'Name of the suite', placeholder: 'Name (optional)', maxLength: 120 });
    const file = h('input', { type: 'file', accept: '.txt,.jsonl', hidden: true, onchange: async () => {
      const [picked] = file.files;
      if (picked) { this.cases.value = await picked.text(); this.name.value ||= picked.name.replace(/\.\w+$/, ''); }
    } });
    this.list = h('div', { class: 's-suites' });
    this.table = h('div', { class: 's-board', 'data-testid': 'suite' });
    const lanes = this.page.talk.lanes.map(laneName).join('  ·  ');
    element.replaceChildren(h('div', { class: 's-shelf-head' }, h('h2', {}, 'Prompt suites'),
        h('span', { class: 's-quiet' }, 'The same prompts to every lane, as a job; answers are scored against what you want.')),
      h('div', { class: 's-suite-form' }, this.cases, h('div', { class: 's-shelf-head' }, this.name,
        button('From a file …', () => file.click()), file, h('span', { class: 's-grow' }),
        button('Run over all lanes', () => this.run(), 's-primary', { 'data-testid': 'run-suite' })),
      h('p', { class: 's-quiet' }, 'One prompt a line. “prompt => answer” gives the wanted answer, '
        + '“prompt =~ pattern” a regular expression; or one JSON object a line. Lanes: ' + lanes)),
      this.list, this.table);
    await this.refresh();
  }

  async run() {
    const { talk } = this.page;
    const lanes = talk.lanes.map(({ model, stack }, lane) => {
      const { system, sampling } = talk.settingsOf(lane);
      return { model, stack, system, sampling };
    });
    try {
      const job = await api('/api/chat/suites', { name: this.name.value, cases: this.cases.value, lanes });
      this.open = job.id;
      await this.refresh();
    } catch (error) { toast(error.message, 'error'); }
  }

  async refresh() {
    clearTimeout(this.timer);
    const found = await api('/api/chat/suites');
    if (!found.some((one) => one.id === this.open)) this.open = found[0]?.id;
    const suite = this.open == null ? null : await api(`/api/chat/suites/${this.open}`);
    this.list.replaceChildren(h('table', { class: 's-table' }, h('tbody', {}, found.map((suite) =>
      h('tr', { class: suite.id === this.open ? 's-chosen' : '' }, h('td', {}, button(suite.name,
        () => { this.open = suite.id; this.refresh(); }, 's-tool')), h('td', {}, badge(suite.state)),
      h('td', { class: 's-quiet' }, LIVE.includes(suite.state) ? `${suite.step} of ${suite.total_steps} prompts`
        : `${suite.total_steps} prompts · ${suite.lanes.length} lanes · ${ago(suite.created)}`),
      h('td', { class: 's-error' }, suite.error ?? ''))))));
    if (!suite) return;
    this.table.replaceChildren(...results(suite, (cases) => { this.cases.value = cases; }));
    if (LIVE.includes(suite.state) && this.table.isConnected && !this.table.closest('[hidden]')) {
      this.timer = setTimeout(() => this.refresh().catch(() => {}), 1500);
    }
  }
}

function results(suite, reuse) {
  const cases = suite.spec.cases.map(({ prompt, expected, pattern }) => pattern ? `${prompt} =~ ${pattern}`
    : expected ? `${prompt} => ${expected}` : prompt).join('\n');
  const head = h('div', { class: 's-shelf-head' }, h('h3', {}, `${suite.name}: ${suite.cases} of ${suite.total} prompts`),
    button('Use these prompts again', () => reuse(cases), 's-tool'), h('span', { class: 's-grow' }),
    exports(`suite-${suite.id}`));
  if (!suite.rows.length) return [head, h('p', { class: 's-quiet' }, suite.error ?? 'No answer yet.')];
  const shown = COLUMNS.filter(([key]) => suite.means.some((one) => one[key] != null));
  const names = suite.lanes.map((lane) => laneName(parseLane(lane)));
  const scored = suite.spec.cases.some((one) => one.expected || one.pattern);
  return [head,
    h('table', { class: 's-table' }, h('thead', {}, h('tr', {}, h('th', {}, 'Lane'),
      shown.map(([, words, , title]) => h('th', { title }, words)))),
    h('tbody', {}, suite.means.map((one, i) => h('tr', {}, h('td', {}, names[i]),
      shown.map(([key, , form]) => h('td', { class: `s-figure ${best(suite.means, key, one) ? 's-best' : ''}` },
        form(one[key]))))))),
    ...(scored ? [h('h3', {}, 'Wins of the row against the column'), heat(suite.lanes, suite.wins)] : []),
    h('div', { class: 's-scroll-x' }, h('table', { class: 's-table s-answers-table' },
      h('thead', {}, h('tr', {}, ['', 'Prompt', 'Wanted', ...names].map((words) => h('th', {}, words)))),
      h('tbody', {}, suite.rows.map((row) => h('tr', {}, h('td', {}, row.case + 1), h('td', {}, row.prompt),
        h('td', {}, row.expected ?? row.pattern ?? ''), row.answers.map((answer) => {
          const good = answer.pattern ?? answer.exact_match;
          return h('td', { 'data-good': good == null ? null : String(good), class: answer.error ? 's-error' : '' },
            answer.error ?? answer.text);
        })))))),
  ];
}

// Where more is better, and a column says something: not all lanes have the same.
const MORE = ['exact_match', 'rouge_l', 'pattern', 'json', 'tokens_per_second'];

function best(means, key, one) {
  const values = means.map((lane) => lane[key]).filter((value) => value != null);
  const top = Math.max(...values);
  return MORE.includes(key) && one[key] === top && values.some((value) => value < top);
}

function share(value) {
  return value == null ? '–' : `${(value * 100).toFixed(0)} %`;
}
