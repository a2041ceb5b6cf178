// The five charts of a run and the strip above them; Train shows the first, Runs shows all.

import { api, compact, count, number } from './dom.js';
import { Chart, Group } from './chart.js';

export const METRICS = [
  { name: 'loss', title: 'Training loss', names: true, empty: 'The first step draws the first point' },
  { name: 'eval_loss', title: 'Held-out loss', smooth: false, dots: true,
    empty: 'Drawn at the first evaluation' },
  { name: 'learning_rate', title: 'Learning rate', smooth: false },
  { name: 'grad_norm', title: 'Gradient norm' },
  { name: 'tokens_per_second', title: 'Tokens per second', format: compact },
];

const LOSSES = ['loss', 'eval_loss'];
const HINT = 'A click opens the nearest checkpoint in Compare';

/** Charts for these metrics in one group; `update(series)` feeds them all. A click on a point of a
 *  loss curve calls `pick({run, step})`, where one is given. */
export function board(names, pick = null) {
  const group = new Group();
  const charts = METRICS.filter((m) => names.includes(m.name)).map((m) => new Chart(group,
    pick && LOSSES.includes(m.name) ? { ...m, pick, hint: HINT } : m));
  const update = (series) => {
    for (const chart of charts) chart.lines = series.get(chart.options.name) ?? new Map();
    group.redraw();
  };
  group.onZoom = (zoom) => refine(group, charts, zoom);
  return { group, charts, update };
}

const WHOLE = 1000; // shorter curves come whole

/** Fetch the zoomed part again where the curve on screen is a thinned one. */
async function refine(group, charts, zoom) {
  const thinned = charts.some((chart) => [...chart.lines.values()].some((l) => l.x.length > WHOLE));
  if (!zoom || !thinned) return;
  const asked = new URLSearchParams({ runs: [...group.hues.keys()].join(), low: Math.floor(zoom[0]),
    high: Math.ceil(zoom[1]), names: charts.map((chart) => chart.options.name).join() });
  const answer = await api(`/api/metrics?${asked}`).catch(() => null);
  if (!answer || group.zoom !== zoom) return;
  const series = new Map(Object.entries(answer.data).map(([name, runs]) =>
    [name, new Map(Object.entries(runs).map(([run, line]) => [Number(run), line]))]));
  group.set({ fine: { zoom, series } });
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
