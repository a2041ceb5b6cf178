// Train's right side: what the launch button did. The run it started is shown live, right here, so
// that the first loss appears where the person looks; a mistake is a sentence beside the button.

import { api, badge, button, duration, h, number, remember, query, sureButton, text, toast }
  from './dom.js';
import { hues, isLive, poke, subscribe } from './live.js';
import { board, progress, share, stateName } from './metrics.js';
import { compareAddress } from './detail.js';
import { planSweep } from './plan.js';
import { snippet } from './views.js';

/** An element that python writes again and again: gradio then changes the attribute in place and
 *  takes the children away, so everything is rendered afresh once it is done. */
class Told extends HTMLElement {
  static observedAttributes = ['data-value'];

  connectedCallback() {
    if (!this.children.length) this.render(this.value());
  }

  attributeChangedCallback() {
    if (this.isConnected) queueMicrotask(() => this.render(this.value()));
  }

  value() {
    return JSON.parse(this.dataset.value || '{}');
  }
}

export class Launch extends Told {
  render({ job, error, field }) {
    this.leave?.();
    this.run = job ?? this.run ?? (Number(query().get('run')) || null);
    this.said = this.acts = null;
    if (job) remember({ run: job });
    mark(field);
    this.build(error);
    this.leave = subscribe({
      element: this,
      runs: () => (this.run ? [this.run] : []),
      names: () => ['loss', 'eval_loss'],
      onJobs: (jobs) => this.take(jobs),
      onMetrics: (series) => this.board.update(series),
    });
    poke();
  }

  build(error) {
    this.board = board(['loss', 'eval_loss']);
    this.board.group.smoothing = Number(localStorage.getItem('studio.smoothing') ?? 0.6);
    this.error = h('p', { class: 's-error', role: 'alert', 'data-testid': 'launch-error',
      hidden: !error }, error);
    this.line = h('p', { class: 's-launched', role: 'status', 'data-testid': 'launched' });
    this.track = h('span', { class: 's-bar-track s-wide', role: 'progressbar', 'aria-label':
      'Progress', 'aria-valuemin': 0, 'aria-valuemax': 100 }, h('span', {}));
    this.going = h('span', { 'data-testid': 'progress' });
    this.left = h('span', {});
    this.progress = h('div', { class: 's-progress' }, this.track,
      h('div', { class: 's-progress-words' }, this.going, this.left));
    this.actions = h('div', { class: 's-actions' });
    this.show = h('div', { class: 's-live', hidden: true }, this.line, this.progress,
      this.board.charts.map((chart) => chart.element), this.actions);
    this.before = h('div', { class: 's-before' }, sketch(),
      h('p', {}, 'The loss appears here within seconds of pressing Train.'));
    this.replaceChildren(this.error, this.show, this.before);
  }

  take(jobs) {
    // Before the first launch in this tab, show what is going on anyway.
    if (!this.run) {
      this.run = jobs.find((job) => job.kind === 'train' && isLive(job) && job.state !== 'queued')?.id
        ?? null;
      if (this.run) poke();
    }
    const job = jobs.find((one) => one.id === this.run);
    this.show.hidden = !job;
    this.before.hidden = Boolean(job);
    if (!job) return;
    this.board.group.set({ hues: hues([job.id]), names: new Map([[job.id, job.name]]) });
    const ahead = jobs.filter((one) => one.id !== job.id && isLive(one)
      && (one.state !== 'queued' || one.id < job.id)).length;
    this.say(job, ahead);
    this.track.firstChild.style.width = `${100 * share(job)}%`;
    this.track.setAttribute('aria-valuenow', Math.round(100 * share(job)));
    this.track.toggleAttribute('data-waiting', ['queued', 'starting'].includes(job.state)
      || (job.state === 'running' && !job.step));
    text(this.going, progress(job) || job.phase || (job.state === 'queued' ? 'Waits for its turn'
      : job.state === 'starting' ? 'Starting' : ''));
    const left = job.state === 'running' ? job.seconds_left : null;
    text(this.left, left != null ? `${duration(left)} left`
      : job.last_loss != null && !isLive(job) ? `loss ${number(job.first_loss)} → ${number(job.last_loss)}` : '');
    this.act(job);
  }

  say(job, ahead) {
    const state = stateName(job);
    const words = `${state} ${ahead} ${job.error?.text}`;
    if (this.said === words) return;
    this.said = words;
    const link = h('a', { href: `/runs?run=${job.id}` }, job.name);
    const more = job.state === 'queued' && ahead ? ` after ${ahead} other run${ahead > 1 ? 's' : ''}` : '';
    this.line.replaceChildren(badge(state), link, more,
      job.error ? h('span', { class: 's-error' }, job.error.text) : '');
  }

  act(job) {
    const acts = `${job.state} ${job.intent} ${job.adapter}`;
    if (this.acts === acts) return;
    this.acts = acts;
    const can = new Set(job.actions);
    const send = async (action) => {
      try { await api(`/api/jobs/${job.id}/${action}`, {}); } catch (e) { toast(e.message, 'error'); }
      poke();
    };
    this.actions.replaceChildren(...[
      job.adapter && h('a', { class: 's-button s-primary', href: compareAddress(job) },
        'Compare with the base'),
      can.has('resume') && button('Resume', () => send('resume'), 's-primary'),
      can.has('pause') && button('Pause', () => send('pause')),
      can.has('cancel') && job.intent !== 'cancel'
        && sureButton('Cancel', 'Really cancel?', () => send('cancel')),
      h('a', { class: 's-button', href: `/runs?run=${job.id}` }, 'Open in Runs'),
    ].filter(Boolean));
  }
}

/** The form in other words: command line and YAML, and the address that opens it again. */
export class Notes extends Told {
  render(values) {
    // Looks at the form overlap and an older one may arrive last: the newest is what counts.
    if ((values.turn ?? 0) < (Notes.newest?.turn ?? 0)) values = Notes.newest;
    else if (values.turn) Notes.newest = values;
    const { command, yaml, query: state, error, field } = values;
    mark(field);
    if (error) {
      this.replaceChildren(h('p', { class: 's-error', role: 'alert' }, error));
      return;
    }
    // The document's own first state says nothing yet: the address decides what the form shows.
    if (state !== null) {
      const set = new URLSearchParams(state).getAll('set');
      remember({ set });
      document.dispatchEvent(new CustomEvent('studio-form', { detail: set }));
    }
    for (const wait of [0, 400, 1500]) setTimeout(offer, wait); // another method's fields come later
    this.replaceChildren(h('details', { class: 's-same', open: localStorage.getItem('studio.same') !== '0',
      ontoggle: (e) => localStorage.setItem('studio.same', e.target.open ? '1' : '0') },
      h('summary', {}, 'The same as a command or a file'),
      snippet('Command line', command), snippet('spec.yaml', yaml)),
    button('Sweep: several values of some fields …', () => planSweep(null, query().getAll('set')),
      's-tool'),
    button('Bake-off: these settings with several methods …', () => import('./bakeoff.js').then(
      ({ askBakeoff }) => askBakeoff({ assignments: query().getAll('set') })), 's-tool'));
  }
}

/** The picker of target modules, where the page shows such a field. */
async function offer() {
  const { offerPicker } = await import('./targets.js');
  offerPicker(() => query().getAll('set').find((one) => one.startsWith('model.path='))
    ?.slice('model.path='.length) ?? 'starter');
}

/** Point at the field a sentence is about. */
function mark(field) {
  for (const node of document.querySelectorAll('.s-wrong-field')) node.classList.remove('s-wrong-field');
  if (!field) return;
  document.getElementById(field)?.classList.add('s-wrong-field');
}

/** A faint falling curve: what is going to be here. */
function sketch() {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 240 90');
  svg.setAttribute('aria-hidden', 'true');
  for (const [d, faint] of [['M10 5V80H232', 1],
    ['M12 12C30 40 42 52 74 60S140 70 230 73', 0]]) {
    const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    path.setAttribute('d', d);
    path.setAttribute('class', faint ? 's-axis' : 's-curve');
    svg.append(path);
  }
  return svg;
}
