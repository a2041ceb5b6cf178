// One run: progress, figures, actions, and tabs with what it wrote.

import { Results } from '../adapters/bakeoff.js';
import { ago, api, badge, button, changed, choose, clock, compact, count, dots, duration, figures, go, h, menu, newest,
  number, quiet, redraw, say, send, short, sureButton, t, table, tabs, text, toast, when } from '../core/dom.js';
import { blindTest, compareAddress, COMPARED } from '../core/lanes.js';
import { actOn, isLive, isOpen, isWaiting, JobProgress, poke, resumes, stages, stateName } from '../core/live.js';
import { bySource, forgettingCard, KINDS, outcome } from '../core/outcome.js';
import { saveReport } from '../core/take_away.js';
import { NEXT_STAGE, planLonger, planNext, planNote, planSchedule, planSweep } from './queue.js';
import { readAt, Reading, remedies, views } from './run_parts.js';

const VIEWS = { log: t`Log`, samples: t`Samples`, checkpoints: t`Checkpoints`, config: t`Config`, history: t`History` };
const FAILURES = {
  out_of_memory: [t`Out of memory`, ''],
  weights_too_large: [t`The base does not fit`, ''],
  device_lost: [t`The device failed`, ''],
  disk_full: [t`The disk is full`, t`Free some space, then resume: what was saved is intact.`],
  cluster: [t`The cluster could not train it`, t`After repair, resume: what was saved is here.`],
  diverged: [t`The loss diverged`, t`Lower the learning rate or the gradient norm limit, then train again.`],
};

const FULL = new Set(['out_of_memory', 'weights_too_large']);

export class Detail {
  /** `jobs()` are all jobs; `overlay` is called with the ids of a group. */
  constructor(jobs, overlay) {
    Object.assign(this, { jobs, overlay });
    this.view = 'log';
    this.digest = ''; // of what the tab shows
    this.dot = h('i.s-dot');
    this.title = h('h1');
    this.state = h('span');
    this.actions = h('div.s-actions');
    this.meta = h('p.s-meta');
    this.progress = new JobProgress();
    this.remarks = h('p.s-remarks', { hidden: true });
    this.failure = h('div.s-failure', { role: 'alert', hidden: true });
    this.outcome = new JobOutcome();
    this.figures = figures([]);
    this.reading = new Reading();
    this.sources = h('details.s-same', { hidden: true, open: true, testid: 'sources' });
    this.group_ = h('details.s-same', { hidden: true, open: true, testid: 'group' });
    this.element = h('section.s-detail', { testid: 'detail' },
      h('div.s-detail-head', this.dot, this.title, this.state, this.actions),
      this.meta, this.remarks, this.failure, this.progress.element, this.outcome.element, this.figures,
      this.reading.element, this.answers = h('section.s-answered', { hidden: true, testid: 'answers' }), this.sources,
      this.forgot = h('div'), this.group_);
    this.tabs = tabs(Object.entries(VIEWS), (id) => this.turn(id), { 'aria-controls': 's-panel' });
    choose(this.tabs, this.view);
    this.body = h('div.s-panel', { id: 's-panel', role: 'tabpanel', tabindex: '0' });
    this.panels = h('section.s-panels', this.tabs, this.body);
  }

  turn(view) {
    if (view === this.view) return;
    this.view = view;
    choose(this.tabs, view);
    this.empty();
    poke();
  }

  /** Clear the tab until the next answer, which must be complete. */
  empty() {
    this.digest = '';
    redraw(this.body, quiet('…'));
  }

  show(job, hue) {
    if (this.job?.id !== job.id) this.empty();
    this.job = job;
    this.dot.style.background = `var(--s-run-${hue})`;
    text(this.title, job.name);
    const state = stateName(job);
    if (changed(this.state, state)) redraw(this.state, badge(state));
    text(this.meta, dots(t`Run ${job.id}`, job.method, short(job.model), short(job.data),
      job.started && job.state !== 'queued' ? t`started ${clock(job.started)} (${ago(job.started)})`
        : t`queued ${ago(job.created)}`,
      job.device && t`on ${job.device}`, job.attempt > 1 && t`attempt ${job.attempt}`, job.note));
    this.showRemarks(job);
    this.progress.element.hidden = !isOpen(job);
    this.progress.show(job);
    this.showFailure(job);
    this.outcome.show(job, this.jobs());
    this.showFigures(job);
    this.showRead(job);
    this.showSources(job);
    this.showGroup(job);
    this.showActions(job);
  }

  async showRead(job) {
    if (!changed(this.forgot, readAt(job))) return;
    if (this.read !== job.id) { this.reading.show(job, []); redraw(this.forgot); this.showAnswers([]); }
    this.read = job.id;
    if (!draws(job) && job.forgetting == null) return;
    const shown = await api('/api/do/show', { job: job.id }).catch(() => null); // deleted meanwhile
    if (!shown || this.job.id !== job.id) return;
    const { general, reading, answers } = shown;
    this.showAnswers(answers);
    this.reading.show(job, reading, job.state === 'succeeded' && job.last_loss != null);
    redraw(this.forgot, ...(general ? [forgettingCard(general)] : []));
  }

  /** The last answers to its sample prompts, beside those that the dataset wants. */
  showAnswers(answers) {
    this.answers.hidden = !answers.length;
    if (!answers.length) return;
    const known = answers.some(({ wanted }) => wanted);
    redraw(this.answers, h('h2', t`Answers after step ${count(answers[0].step)}`),
      table([t`Question`, ...(known ? [t`Wanted answer`] : []), t`Answer`],
        answers.map(({ prompt, wanted, answer, trained }) => [
          h('td', prompt, trained == null ? '' : quiet(trained ? t`trained on` : t`held out`)),
          ...(known ? [wanted ?? ''] : []), answer || '–'])));
  }

  showSources({ id, sources }) {
    this.sources.hidden = !sources;
    if (!sources || !changed(this.sources, JSON.stringify([id, sources]))) return;
    redraw(this.sources, h('summary', t`${sources.length} sources of its dataset`), bySource(sources));
  }

  /** The runs of its sweep or bake-off, best first; else the stages that led to it and follow it. */
  showGroup(job) {
    const runs = job.sweep ? this.jobs().filter((one) => one.sweep === job.sweep && draws(one))
      : stages(job, this.jobs());
    this.group_.hidden = runs.length < 2;
    if (!changed(this.group_, runs.map((one) => [one.id, one.state, one.eval_loss, one.last_loss, one.forgetting,
      one.id === job.id]).join())) return;
    const rank = (one) => one.eval_loss ?? one.last_loss ?? Infinity;
    const mixed = runs.some((one) => one.loss !== runs[0].loss); // their losses cannot be compared
    const figure = (one, value) => (value != null && mixed ? dots(number(value), one.loss || 'SFT') : number(value));
    const [title, heading] = job.sweep ? [t`${runs.length} runs of “${job.sweep}”`, t`Method`]
      : [t`${runs.length} stages, each from the adapter of the one before`, t`Dataset`];
    if (job.sweep) runs.sort((a, b) => a.loss.localeCompare(b.loss) || rank(a) - rank(b) || a.id - b.id);
    redraw(this.group_, h('summary', title),
      table([t`Run`, heading, t`State`, t`Held-out loss`, t`Forgetting`, t`Loss`, t`Time`], runs.map((one) => [
        one.id === job.id ? h('b', one.name) : h('a', { href: `/runs?run=${one.id}` }, one.name),
        job.sweep ? one.method : dots(one.method, short(one.data)), badge(stateName(one)),
        figure(one, one.eval_loss), number(one.forgetting, 3), figure(one, one.last_loss), duration(one.seconds)])),
      h('div.s-actions', button(t`Overlay their curves`, () => this.overlay(runs.map(({ id }) => id))),
        button(t`Save a report`, () => saveReport({ jobs: runs.map(({ id }) => String(id)) }))));
  }

  showRemarks(job) {
    const waits = isWaiting(job);
    const called = (id) => this.jobs().find((one) => one.id === id)?.name ?? t`run ${id}`;
    const names = job.needs.map(called);
    say(this.remarks, dots(
      waits && job.start_after > Date.now() / 1000 && t`starts after ${when(job.start_after)}`,
      waits && { idle: t`starts when the machine is idle`, night: t`starts at night` }[job.start_when],
      waits && job.retries_left > 0 && t`up to ${job.retries_left} ${job.retries_left > 1 ? 'retries' : 'retry'}`,
        job.waits,
      waits && names.length && t`waits for ${names.join(', ')}`,
      job.tokens_shared && t`${number(100 * job.tokens_shared, 0)}\u202f% of all tokens are prompts that several answers
        share: computed once`,
      job.sweep && t`in the group ${job.sweep}`, job.parent && t`from ${called(job.parent)}`,
      job.tags.map((tag) => `#${tag}`), job.notes));
  }

  showFailure(job) {
    this.failure.hidden = !job.error || job.error.kind === 'gate'; // beside its figures
    if (!job.error) return;
    const [title, advice] = FAILURES[job.error.kind] ?? [t`This run failed`, ''];
    if (!changed(this.failure, `${job.id} ${job.error.text}`)) return;
    const fits = FULL.has(job.error.kind) && job.kind === 'train';
    const words = fits ? job.error.text.replace(/ Try .*/s, '') : job.error.text; // the buttons offer it
    redraw(this.failure, h('strong', title), h('p', words), advice ? quiet(advice) : '',
      ...(fits ? remedies(job.id) : []));
  }

  showFigures(job) {
    this.figures.hidden = !draws(job) && job.eval_loss == null;
    const rows = job.rows ?? {};
    const shown = [
      [t`Loss`, number(job.last_loss), job.first_loss == null ? '' : t`${number(job.first_loss)} at first`],
      job.reward != null ? [t`Held-out reward`, number(job.reward), ''] : [t`Held-out loss`, number(job.eval_loss),
        job.reward_accuracy == null ? '' : t`accuracy ${number(100 * job.reward_accuracy, 0)}\u202f%`],
      [t`Steps`, count(job.step), job.total_steps ? t`of ${count(job.total_steps)}` : ''],
      [t`Time`, duration(job.seconds ?? (job.started && isLive(job)
        ? Date.now() / 1000 - job.started : null)), ''],
      [rows.trained == null ? t`Rows` : t`Trained rows`, count(rows.trained ?? rows.kept),
        dots(rows.held_out && t`${count(rows.held_out)} held out`,
          rows.evaluated != null && rows.evaluated < rows.held_out && t`${count(rows.evaluated)} evaluated`,
          rows.dropped && t`${count(rows.dropped)} dropped`,
        job.truncated && t`${count(job.truncated)} cut at the context`)],
      [t`Trainable`, compact(job.trainable_parameters), job.total_parameters
        ? `${number((100 * job.trainable_parameters) / job.total_parameters, 2)}\u202f%` : ''],
    ];
    if (!this.figures.firstChild) this.figures.append(...figures(shown).children);
    shown.forEach(([name, value, note], i) => {
      const [title, { children: [main, aside] }] = this.figures.children[i].children;
      text(title, name);
      text(main, value);
      text(aside, note);
    });
  }

  showActions(job) {
    if (!changed(this.actions, [job.id, job.state, job.intent, job.adapter, job.adapter_deleted, job.sweep, job.waits,
      this.jobs().some((one) => one.sweep && one.sweep === job.sweep && isLive(one))].join())) return;
    const can = new Set(job.actions), more = this.menu(job, can);
    redraw(this.actions, ...[
      job.adapter && COMPARED.has(job.kind)
        && h('a.s-button.s-primary', { href: compareAddress(job) }, t`Compare`),
      !job.adapter && job.adapter_deleted !== null && h('span.s-quiet', t`Its adapter was deleted.`),
      !job.adapter && job.adapter_deleted && button(t`Restore`,
        () => send('/api/do/adapters.undo', { adapter: job.adapter_deleted }).then(poke)),
      job.kind === 'train' && job.state === 'succeeded' && button(t`Train longer …`, () => planLonger(this.job)),
      job.adapter && job.kind === 'train' && button(t`Blind test`, async () => {
        const found = await send('/api/do/adapters.show', { adapter: `run-${job.id}` });
        if (found) go(blindTest(found));
      }, '', { title: t`Against what it was trained from, without names; your votes give the win rate` }),
      can.has('resume') && button(resumes(job), () => this.act('resume'),
        FULL.has(job.error?.kind) ? '' : 's-primary'), // the failure card has a better way
      job.state === 'queued' && button(t`Run next`, () => this.act('first')),
      (can.has('pause') || can.has('hold')) && button(job.state === 'queued' ? t`Hold` : t`Pause`,
        () => this.act('pause')),
      draws(job) && button(t`Duplicate`, () => this.duplicate(), '', { title: t`Open these settings in Train` }),
      can.has('cancel') && !(job.intent === 'cancel')
        && sureButton(t`Cancel`, t`Really cancel?`, () => this.act('cancel')),
      more,
    ].filter(Boolean));
  }

  menu(job, can) {
    const trains = job.kind === 'train', now = () => this.job;
    const waits = isWaiting(job);
    const going = job.sweep && this.jobs().some((one) => one.sweep === job.sweep && isOpen(one));
    return menu(t`More`,
      waits && button(t`When it starts …`, () => planSchedule(now(), this.jobs())),
      job.state === 'queued' && job.waits && job.memory_bytes && button(t`Start without enough memory`,
        () => this.act('anyway'), '', { title: t`It may run out of memory` }),
      trains && button(t`Sweep …`, () => planSweep(now())),
      trains && !job.trains_base && (waits || isLive(job) || job.state === 'succeeded')
        && button(NEXT_STAGE, () => planNext(now())),
      trains && job.state === 'running' && button(t`Save now`, () => this.act('save',
        t`A checkpoint is saved after this step.`)),
      trains && job.state === 'running' && button(t`Sample now`, () => this.act('sample',
        t`The prompts are answered after this step.`)),
      REPORTED.has(now().kind) && button(t`Save a report`, () => saveReport({ jobs: [String(now().id)] }), '',
        { title: t`One HTML file with curves, settings, samples, rows, votes` }),
      button(t`Note and tags …`, () => planNote(now())),
      going && button(t`Hold the group`, () => this.group('hold')),
      going && button(t`Release the group`, () => this.group('release')),
      going && sureButton(t`Cancel the group`, t`Cancel all of it?`, () => this.group('cancel')),
      can.has('resume') && job.step > 0
        && sureButton(t`Restart from step 0`, t`Discard its steps?`, () => this.act('restart')),
      can.has('cancel') && job.intent !== 'cancel' && sureButton(t`Cancel, drop checkpoints`,
        t`Drop them for good?`, () => this.act('drop')),
      can.has('delete') && sureButton(t`Delete`, job.adapter ? t`Delete with its adapter?` : t`Delete for good?`,
        () => this.act('delete', ({ deleted }) => {
          this.deleted = deleted;
          return job.adapter ? t`Run ${deleted} and its adapter were deleted.` : t`Run ${deleted} was deleted.`;
        })));
  }

  async group(action) {
    await send(`/api/do/${action}`, { sweep: this.job.sweep },
      ({ changed, refused }) => [t`${changed} run${changed === 1 ? '' : 's'} changed.`, ...refused]
        .join(' '));
    poke();
  }

  act(action, done) { return actOn(this.job.id, action, {}, done); }

  async duplicate() {
    const { content, error } = (await send(`/api/live?detail=${this.job.id}&view=config`))?.detail ?? {};
    const wrong = error?.text ?? content?.error;
    if (wrong) toast(wrong, 'error');
    else if (content) go('/?' + (content.query || 'set=')); // else the form opens as it was left
  }

  isSelected() {
    const { isCollapsed, anchorNode } = getSelection();
    return !isCollapsed && this.body.contains(anchorNode);
  }

  fill(detail) {
    if (detail.id !== this.job?.id || detail.view !== this.view) return;
    if (this.view === 'log' && this.isSelected()) return; // asked for again until nothing is
    this.digest = detail.digest;
    const { body } = this;
    const atEnd = body.scrollTop + body.clientHeight >= body.scrollHeight - 8;
    if (detail.error) redraw(body, quiet(detail.error.text));
    else {
      const films = [...body.querySelectorAll('.s-film ol')].map((film) => film.scrollLeft
        + film.clientWidth >= film.scrollWidth - 8 ? Infinity : film.scrollLeft);
      redraw(body, ...[views[detail.view](detail.content, this.job)].flat());
      body.querySelectorAll('.s-film ol').forEach((film, i) => {
        film.scrollLeft = Math.min(films[i] ?? Infinity, film.scrollWidth);
      });
    }
    if (detail.view === 'log' && atEnd) body.scrollTop = body.scrollHeight;
  }
}

const CURVES = new Set(['train', 'arrive']);
const REPORTED = new Set([...CURVES, 'bakeoff', 'suite', 'merge']);
const KIND_PAGES = {
  suite: [t`A prompt suite: its table and answers`, t`Compare, Suites`, '/compare?view=suites'],
  judge: [t`A model that judged the answers of a suite`, t`Compare, Suites`, '/compare?view=suites'],
  import: [t`The import of a dataset`, t`Data`, '/data'],
  curate: [t`A step that made a new dataset`, t`Data`, '/data'],
  measure: [t`Token counts of a dataset`, t`Data`, '/data'],
  preflight: [t`The measurement of what a run takes`, t`Train`, '/'],
};

export const draws = (job) => CURVES.has(job.kind);

/** A job without a curve: its purpose, its outcome, and the page that shows it. */
class JobOutcome {
  constructor() {
    this.line = quiet();
    this.result = h('div', { testid: 'outcome' });
    this.contest = new Results();
    this.element = h('section.s-outcome', { hidden: true }, this.line, this.result, this.contest.element);
  }

  show(job, jobs) {
    this.element.hidden = draws(job);
    if (job.kind === 'bakeoff') {
      if (this.contest.name !== job.sweep) this.contest.show(job.sweep);
      else this.contest.take(jobs);
    } else this.contest.hide();
    if (draws(job) || !changed(this.line, `${job.id} ${job.state}`)) return;
    const adapters = KINDS[job.kind] && [t`${KINDS[job.kind]} of adapters`, t`Adapters`, '/adapters'];
    const [what, place, address] = KIND_PAGES[job.kind] ?? adapters ?? [];
    redraw(this.line, ...(what ? [t`${what}. See `, h('a', { href: address }, place), '. '] : []),
      job.seconds && !isLive(job) ? t`It took ${duration(job.seconds)}.` : '');
    redraw(this.result);
    const shown = job.kind !== 'bakeoff' && (!job.error || job.error.kind === 'gate');
    if (shown && !isLive(job)) outcome(job, this.result);
    else newest(this.result); // nothing that is still under way
  }
}
