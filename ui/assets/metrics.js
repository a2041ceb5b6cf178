// The five charts of a run and the strip above them; Train shows the first, Runs shows all.

import { compact, count, number } from './dom.js';
import { Chart, Group } from './chart.js';

export const METRICS = [
  { name: 'loss', title: 'Training loss', names: true, empty: 'The first step draws the first point' },
  { name: 'eval_loss', title: 'Held-out loss', smooth: false, dots: true,
    empty: 'Drawn at the first evaluation' },
  { name: 'learning_rate', title: 'Learning rate', smooth: false },
  { name: 'grad_norm', title: 'Gradient norm' },
  { name: 'tokens_per_second', title: 'Tokens per second', format: compact },
];

/** Charts for these metrics in one group; `update(series)` feeds them all. */
export function board(names) {
  const group = new Group();
  const charts = METRICS.filter((m) => names.includes(m.name)).map((m) => new Chart(group, m));
  const update = (series) => {
    for (const chart of charts) chart.update(series.get(chart.options.name) ?? new Map());
  };
  return { group, charts, update };
}

/** 120 / 400 steps · 30 % */
export function progress(job) {
  if (!job.total_steps) return job.step ? `${count(job.step)} steps` : '';
  const share = Math.floor((100 * job.step) / job.total_steps);
  return `${count(job.step)} / ${count(job.total_steps)} steps · ${share}\u202f%`;
}

export const share = (job) => (job.total_steps ? Math.min(1, job.step / job.total_steps) : 0);

/** "How it ended" in words; a stopped run never says it succeeded. */
export function stateName(job) {
  return job.state === 'succeeded' && job.ended === 'stopped' ? 'stopped' : job.state;
}

export const lossOf = (job) => number(job.last_loss);
