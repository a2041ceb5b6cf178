// A job that draws no curve, on the Runs page: what it was for, what came of it, and where that is.

import { duration, h } from './dom.js';
import { KINDS, outcome } from './adapters_jobs.js';
import { isLive } from './live.js';

const CURVES = new Set(['train', 'arrive']);
const WHERE = {
  bakeoff: ['The table of a bake-off', 'Adapters', (job) => `/adapters?bakeoff=${encodeURIComponent(job.sweep ?? job.name)}`],
  suite: ['A prompt suite: its table and answers', 'Compare, Suites', () => '/compare?view=suites'],
  import: ['The import of a dataset', 'Data', () => '/data'],
  curate: ['A step that made a new dataset', 'Data', () => '/data'],
  measure: ['Token counts of a dataset', 'Data', () => '/data'],
  preflight: ['The measurement of what a run takes', 'Train', () => '/'],
};

/** Whether this job writes losses. */
export const draws = (job) => CURVES.has(job.kind);

export class Errand {
  constructor() {
    this.line = h('p', { class: 's-quiet' });
    this.result = h('div', { 'data-testid': 'outcome' });
    this.element = h('section', { class: 's-errand', hidden: true }, this.line, this.result);
  }

  show(job) {
    this.element.hidden = draws(job);
    const key = `${job.id} ${job.state}`;
    if (draws(job) || this.key === key) return;
    this.key = key;
    const [what, place, address] = WHERE[job.kind]
      ?? [KINDS[job.kind] ? `${KINDS[job.kind]} of adapters` : '', KINDS[job.kind] && 'Adapters', () => '/adapters'];
    this.line.replaceChildren(...[what && `${what}. `, place && 'See ',
      place && h('a', { href: address(job) }, place), place && '. ',
      job.seconds && !isLive(job) && `It took ${duration(job.seconds)}.`].filter(Boolean));
    this.result.replaceChildren();
    if (job.kind in KINDS && !isLive(job) && !job.error) outcome(job, this.result);
  }
}
