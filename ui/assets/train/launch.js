// The launched run on the Train page: its state, its live loss, and what can be done with it.

import { board } from '../core/chart.js';
import { badge, button, duration, h, query, quiet, redraw, remember, sureButton, t, text } from '../core/dom.js';
import { compareAddress } from '../core/lanes.js';
import { actOn, hues, isLive, JobProgress, poke, resumes, stateName, subscribe } from '../core/live.js';

const SHOWN = ['loss', 'eval_loss', 'reward', 'eval_reward'];

/** The number of runs that end before a queued one starts: those before it in its line, one that is running. */
export function before(job, jobs) {
  const line = jobs.filter((one) => isLive(one) && one.id !== job.id && one.device_wanted === job.device_wanted);
  return line.filter((one) => one.state === 'queued' && (one.position - job.position || one.id - job.id) < 0).length
    + line.some((one) => one.state !== 'queued');
}

export class Launch {
  constructor() {
    this.board = board(SHOWN);
    this.board.group.smoothing = Number(localStorage.getItem('studio.smoothing') ?? 0.6);
    this.line = h('p.s-launched', { role: 'status', testid: 'launched' });
    this.progress = new JobProgress();
    this.actions = h('div.s-actions');
    this.show = h('section.s-live', { hidden: true }, this.line, this.progress.element,
      this.pace = quiet(), this.actions, this.board.charts.map((chart) => chart.element));
    this.before = h('p.s-before', t`The loss appears here within seconds of pressing Train.`);
    this.element = h('div', { id: 'launch' }, this.show, this.before);
    this.run = Number(query().get('run')) || null;
    this.jobs = [];
    subscribe({
      element: this.element,
      runs: () => (this.run ? [this.run] : []),
      names: () => SHOWN,
      onJobs: (jobs) => this.take(jobs),
      onMetrics: (series) => this.board.update(series),
    });
  }

  /** `promised`: the estimate of its seconds. */
  follow(job, set, promised) {
    this.run = job.id;
    sessionStorage.setItem('studio.launched', JSON.stringify([job.id, set.join(), promised]));
    remember({ run: job.id });
    this.take([job, ...this.jobs.filter((one) => one.id !== job.id)]);
    poke();
    this.element.scrollIntoView({ block: 'nearest', behavior: 'smooth' });
  }

  /** The run launched last, while it is going, if it has these very settings. */
  twin(set) {
    const [id, launched] = JSON.parse(sessionStorage.getItem('studio.launched') ?? '[]');
    return launched === set.join() ? this.jobs.find((job) => job.id === id && isLive(job)) : undefined;
  }

  forget() {
    this.run = null;
    remember({ run: null });
    this.take(this.jobs);
  }

  take(jobs) {
    this.jobs = jobs;
    // Before the first launch in this tab, show what is going on anyway.
    this.run ??= jobs.find((job) => job.kind === 'train' && isLive(job) && job.state !== 'queued')?.id ?? null;
    const job = jobs.find((one) => one.id === this.run);
    this.show.hidden = !job;
    this.before.hidden = Boolean(job);
    if (!job) return;
    this.board.group.set({ hues: hues([job.id]), names: new Map([[job.id, job.name]]) });
    const ahead = before(job, jobs);
    this.progress.show(job);
    const [id, , promised] = JSON.parse(sessionStorage.getItem('studio.launched') ?? '[]');
    const whole = job.seconds_left == null ? job.seconds : Date.now() / 1000 - job.started + job.seconds_left;
    text(this.pace, id === job.id && promised && whole && !job.error ? t`Estimated ${duration(promised)}; ${
      isLive(job) ? t`at the pace of its steps` : t`it took`} ${duration(whole)}.` : '');
    const shown = [job.id, stateName(job), ahead, job.error?.text, job.intent, job.adapter].join(' ');
    if (this.shown !== shown) this.showState(job, ahead);
    this.shown = shown;
  }

  showState(job, ahead) {
    const more = job.state === 'queued' && ahead ? t` after ${ahead} other run${ahead > 1 ? 's' : ''}` : '';
    redraw(this.line, badge(stateName(job)), h('a', { href: `/runs?run=${job.id}` }, job.name), more,
      job.error ? h('span.s-error', job.error.text) : '');
    const can = new Set(job.actions);
    const act = (action) => actOn(job.id, action);
    redraw(this.actions, ...[
      job.adapter && h('a.s-button.s-primary', { href: compareAddress(job) },
        t`Compare with the base`),
      can.has('resume') && button(resumes(job), () => act('resume'), 's-primary'),
      can.has('pause') && button(t`Pause`, () => act('pause')),
      can.has('cancel') && job.intent !== 'cancel'
        && sureButton(t`Cancel`, t`Really cancel?`, () => act('cancel')),
      h('a.s-button', { href: `/runs?run=${job.id}` }, t`Open in Runs`),
    ].filter(Boolean));
  }
}
