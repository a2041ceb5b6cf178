// One polling loop per tab feeds charts, tables and logs. It sends a cursor and receives only what is
// new (204 when nothing is), pauses while the tab is hidden and backs off while the server is down.

import { api, badge, bar, button, changed, count, dots, duration, fill, go, h, keyed, number, redraw, send, sureButton,
  t, text } from './dom.js';

const LIVE = new Set(['queued', 'starting', 'running', 'stopping']);
const FAST = 700, SLOW = 2500, HIDDEN = 5000, MINUTE = 60_000, MOST_POINTS = 4000;

const subscribers = new Set();
const state = { jobs: [], digest: '', seq: 0, watched: '', supervised: true, queue: {} };
const series = new Map(); // name -> Map(run -> {x: [], y: []})
let timer = 0, wait = FAST, busy = false, again = false;
let told = 0; // when all had the jobs last: the ages that they show grow
let answered = null; // the selection that the last answer was asked with

/** Subscribe `{element, runs: () => [ids], names: () => [...], detail: () => [id, view, digest shown], ...}`.
 *  Callbacks: onJobs(jobs, supervised, queue, whether the selected ones are all there), onEnded(the jobs that have
 *  ended or gone since), onMetrics(series), onDetail(detail), onLink(ok). */
export function subscribe(subscriber) {
  subscribers.add(subscriber);
  if (state.digest) tell(subscriber);
  poke();
  return () => subscribers.delete(subscriber);
}

/** Poll now: the user acted or the selection changed. What is known already is passed on at once. */
export function poke() {
  for (const s of subscribers) s.onMetrics?.(series);
  clearTimeout(timer);
  if (busy) { again = true; return; }
  timer = setTimeout(tick, 0);
}

export const isLive = (job) => LIVE.has(job.state);

export const isOpen = (job) => isLive(job) || job.state === 'paused';

export const isWaiting = (job) => job.state === 'queued' || job.state === 'paused';

/** A run that ended before its first step has nothing to resume. */
export const resumes = ({ state, step }) => (step || state === 'paused' ? t`Resume` : t`Restart`);

async function tick() {
  for (const s of subscribers) if (s.element && !s.element.isConnected) subscribers.delete(s);
  if (document.hidden && !wantsNotifications()) return;
  busy = true;
  again = false;
  try {
    const asked = selected();
    take(await api('/api/live?' + question()) ?? {}, asked);
    wait = document.hidden ? HIDDEN : state.jobs.some(isLive) ? FAST : SLOW;
    link(true);
  } catch {
    wait = Math.min(Math.max(wait, FAST) * 2, 8000);
    link(false);
  }
  busy = false;
  clearTimeout(timer);
  timer = setTimeout(tick, again ? 0 : wait);
}

/** The jobs that are asked for, and so listed however old they are. */
const selected = () => [...subscribers].map((s) => [s.runs?.() ?? '', s.detail?.()?.[0]]).join();

const tell = (s) => s.onJobs?.(state.jobs, state.supervised, state.queue, answered === selected());

function question() {
  const runs = new Set(), names = new Set();
  let detail = null;
  for (const s of subscribers) {
    for (const run of s.runs?.() ?? []) runs.add(run);
    for (const name of s.names?.() ?? []) names.add(name);
    detail = s.detail?.() ?? detail;
  }
  const asked = new URLSearchParams({ jobs: state.digest });
  const watched = [...runs].sort((a, b) => a - b).join() + ' ' + [...names].sort().join();
  if (watched !== state.watched || tooLong()) { state.watched = watched; state.seq = 0; }
  if (runs.size && names.size) {
    asked.set('runs', [...runs].join());
    asked.set('names', [...names].join());
    asked.set('after', state.seq);
  }
  if (detail) {
    asked.set('detail', detail[0]);
    asked.set('view', detail[1]);
    asked.set('seen', detail[2]);
  }
  return asked.toString().replaceAll('%2C', ',');
}

function tooLong() {
  for (const runs of series.values()) {
    for (const line of runs.values()) if (line.x.length > MOST_POINTS) return true;
  }
  return false;
}

function take(news, asked) {
  let ended = [];
  if (news.jobs) {
    const { items, removed, whole, digest, supervised, queue } = news.jobs;
    startAnew(items);
    const before = new Map(state.jobs.map((job) => [job.id, job])), jobs = new Map(whole ? [] : before);
    for (const job of items) { notify(before.get(job.id), job); jobs.set(job.id, job); }
    for (const id of removed) jobs.delete(id);
    if (state.digest) {
      ended = [...items.filter((job) => !isLive(job) && isLive(before.get(job.id) ?? { state: 'queued' })),
        ...[...before.values()].filter(({ id }) => !jobs.has(id))];
    }
    Object.assign(state, { digest, supervised, queue, jobs: [...jobs.values()].sort((a, b) => b.id - a.id) });
  }
  const more = asked !== answered;
  answered = asked;
  if (news.jobs || more || Date.now() - told > MINUTE) {
    told = Date.now();
    for (const s of subscribers) tell(s);
  }
  if (ended.length) for (const s of subscribers) s.onEnded?.(ended);
  if (news.metrics) {
    if (news.metrics.snapshot) series.clear();
    state.seq = news.metrics.seq;
    for (const [name, runs] of Object.entries(news.metrics.data)) {
      if (!series.has(name)) series.set(name, new Map());
      for (const [run, points] of Object.entries(runs)) append(series.get(name), +run, points);
    }
    for (const s of subscribers) s.onMetrics?.(series);
  }
  if (news.detail) for (const s of subscribers) s.onDetail?.(news.detail);
}

/** A run on a new attempt may have dropped points: fetch its curve again. (The cursor itself is about to
 *  be overwritten by the curves of the same answer.) */
function startAnew(jobs) {
  const before = new Map(state.jobs.map((job) => [job.id, job.attempt]));
  for (const job of jobs) {
    if (before.has(job.id) && before.get(job.id) !== job.attempt) { state.watched = ''; again = true; }
  }
}

export function append(runs, run, points) {
  const line = runs.get(run) ?? { x: [], y: [] };
  runs.set(run, line);
  if (points.thinned) line.thinned = true;
  for (let i = 0; i < points.x.length; i++) {
    // A resumed run repeats the steps after its checkpoint: the newer value wins.
    while (line.x.length && line.x[line.x.length - 1] >= points.x[i]) {
      line.x.pop();
      line.y.pop();
    }
    line.x.push(points.x[i]);
    line.y.push(points.y[i]);
  }
}

function link(ok) {
  for (const s of subscribers) s.onLink?.(ok);
}

document.addEventListener('visibilitychange', () => { if (!document.hidden) poke(); });

/** The hue of each selected run: its id modulo ten, or the next free one where two would clash. */
export function hues(runs) {
  const taken = new Map();
  for (const run of [...runs].sort((a, b) => a - b)) {
    let hue = (run - 1) % 10;
    const used = new Set(taken.values());
    while (used.has(hue) && used.size < 10) hue = (hue + 1) % 10;
    taken.set(run, hue);
  }
  return taken;
}

export function progress(job) {
  if (!job.total_steps) return job.step ? t`${count(job.step)} steps` : '';
  const percent = Math.floor((100 * job.step) / job.total_steps);
  return t`${count(job.step)} / ${count(job.total_steps)} steps · ${percent}\u202f%`;
}

/** The progress of one job: a bar, its steps or phase, and the time left. */
export class JobProgress {
  constructor() {
    this.track = bar('s-wide', { role: 'progressbar', label: t`Progress` });
    this.going = h('span', { testid: 'progress' });
    this.left = h('span');
    this.element = h('div.s-progress', this.track,
      h('div.s-progress-words', this.going, this.left));
  }

  show(job) {
    fill(this.track, share(job), job.state === 'starting' || (job.state === 'running' && !job.step));
    const waiting = { queued: t`Waiting in the queue`, starting: t`Starting`, stopping: job.intent === 'cancel'
      ? t`Stopping after this step` : t`Saving, then pausing` }[job.state];
    const usual = job.step && (job.kind !== 'train' || job.phase === 'Training');
    text(this.going, dots(progress(job), waiting ?? (usual ? '' : job.phase)));
    const ended = !isLive(job) && job.last_loss != null;
    text(this.left, job.state === 'running' && job.seconds_left != null ? t`${duration(job.seconds_left)} left`
      : ended ? t`loss ${number(job.first_loss)} → ${number(job.last_loss)}` : '');
  }
}

export const share = (job) => (job.total_steps ? Math.min(1, job.step / job.total_steps) : 0);

const VARIANTS = { anyway: ['schedule', { anyway: true }], drop: ['cancel', { drop: true }],
  first: ['move', { first: true }], restart: ['resume', { restart: true }] };

/** Ask for an action on a job; `done` is as for `send`. */
export async function actOn(job, name, values = {}, done = undefined) {
  const [action, more] = VARIANTS[name] ?? [name, {}];
  await send(`/api/do/${action}`, { job, ...more, ...values }, done);
  poke();
}

/** The state to show: a run that was stopped early did not succeed. */
export function stateName(job) {
  return job.state === 'succeeded' && job.ended === 'stopped' ? 'stopped' : job.state;
}

/** List the jobs that are open or failed of late. */
export function showJobs(list, jobs) {
  const recent = jobs.filter((job) => isOpen(job) || (job.state === 'failed'
    && Date.now() / 1000 - (job.finished ?? 0) < 3600));
  keyed(list, recent.slice(0, 8), (job) => job.id, (job) => h('li', { testid: `job-${job.id}` }), jobRow);
}

/** Its buttons are drawn again only with the state: a question and the focus stay. */
function jobRow(node, job) {
  const error = job.error?.text, acts = { pause: t`Pause`, resume: resumes(job), hold: t`Hold` };
  if (changed(node, `${job.state} ${job.actions} ${error}`)) {
    node.phase = h('span.s-quiet');
    node.track = bar('s-wide', { role: 'progressbar', label: job.name });
    redraw(node, badge(job.state), h('a', { href: `/runs?run=${job.id}` }, h('b', job.name)), node.phase,
      h('span.s-actions', job.actions.filter((name) => acts[name]).map((name) =>
        button(acts[name], () => actOn(job.id, name), 's-tool')),
      isOpen(job) ? sureButton(t`Cancel`, t`Really cancel?`,
        () => actOn(job.id, 'cancel'), 's-tool') : ''),
      h('div', error ? h('p.s-error', error) : node.track));
  }
  text(node.phase, job.state === 'queued' ? t`waits for what is before it` : job.phase);
  fill(node.track, share(job));
}

const KEY = 'studio.notify';
const ENDS = { succeeded: t`is done`, failed: t`failed`, cancelled: t`was cancelled`,
  paused: t`is paused`, interrupted: t`was interrupted` };

export const wantsNotifications = () => {
  try { return localStorage.getItem(KEY) === 'on' && Notification.permission === 'granted'; } catch {
    return false;
  }
};

/** Switch desktop notifications; returns a sentence when the browser does not allow them. */
export async function toggleNotifications() {
  if (wantsNotifications()) { localStorage.setItem(KEY, 'off'); return ''; }
  if (typeof Notification === 'undefined') return t`This browser has no notifications.`;
  if (await Notification.requestPermission() !== 'granted') {
    return t`The browser does not allow notifications from this page; its site settings do.`;
  }
  localStorage.setItem(KEY, 'on');
  return '';
}

/** Notify when a job has ended since `before`; the tag makes several tabs show one notification. */
function notify(before, job) {
  const worked = before && ['starting', 'running', 'stopping'].includes(before.state);
  if (!worked || !ENDS[job.state] || !wantsNotifications()) return;
  const trained = job.state === 'succeeded' && ['train', 'arrive'].includes(job.kind);
  const shown = new Notification(`${job.name} ${trained ? t`is trained` : ENDS[job.state]}`, {
    body: job.error?.text ?? (job.last_loss == null ? '' : t`loss ${number(job.last_loss)}`),
    tag: `studio-${job.id}-${job.attempt}-${job.state}`,
  });
  shown.onclick = () => { window.focus(); go(`/runs?run=${job.id}`); };
}

/** The chain of stages that a run belongs to, the first stage first; of several next stages, all. */
export function stages(job, jobs) {
  const found = new Set([job]);
  for (let one = job; one?.stage_of; found.add(one)) {
    one = jobs.find(({ id }) => id === one.stage_of);
    if (!one || found.has(one)) break;
  }
  for (const one of [...jobs].sort((a, b) => a.id - b.id)) {
    if ([...found].some(({ id }) => id >= job.id && id === one.stage_of)) found.add(one);
  }
  return [...found].sort((a, b) => a.id - b.id);
}

/** The two lines of a list's row. */
export const rowLines = (name, state, what, aside) => [
  h('span.s-row-line', h('span.s-row-name', name), h('span', state)),
  h('span.s-row-line', h('span.s-row-what', what), h('span.s-row-loss', aside))];
