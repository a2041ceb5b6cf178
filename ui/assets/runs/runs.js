// The Runs page: the list on the left selects, the right side shows the selected run and its curves,
// with other runs overlaid. The address holds the selection: ?run=3,1 shows run 3 and overlays run 1,
// &show=live lists the queue.

import { board, METRICS } from '../core/chart.js';
import { ago, badge, bar, button, changed, count, dots, duration, fill, h, keyed, number, Page, query, remember, say,
  short, t, text, toast } from '../core/dom.js';
import { matcher, searchField } from '../core/form.js';
import { openCheckpoint } from '../core/lanes.js';
import { actOn, hues, isLive, isOpen, isWaiting, poke, rowLines, share, stateName, subscribe } from '../core/live.js';
import { saveReport } from '../core/take_away.js';
import { QueueBar } from './queue.js';
import { Detail, draws } from './run.js';

const FILTERS = { all: draws, live: isOpen, ended: (job) => draws(job) && !isOpen(job),
  other: (job) => !draws(job) };
const MOST_OVERLAID = 10;

export class Runs extends Page {
  build() {
    this.jobs = [];
    this.filter = Object.hasOwn(FILTERS, query().get('show')) ? query().get('show') : 'all';
    this.asked();
    addEventListener('popstate', () => { this.asked(); if (this.jobs.length) this.show(); poke(); });
    this.draw();
    subscribe({
      element: this,
      runs: () => this.chosen(),
      names: () => METRICS.map((metric) => metric.name),
      detail: () => (this.focus ? [this.focus, this.detail.view, this.detail.digest] : null),
      onJobs: (...told) => this.take(...told),
      onMetrics: (series) => this.board.update(series),
      onDetail: (detail) => this.detail.fill(detail),
    });
  }

  asked() {
    const asked = (query().get('run') ?? '').split(',').map(Number).filter(Boolean);
    this.focus = asked[0] ?? null;
    this.overlaid = this.few(asked);
  }

  /** The first of these runs, as many as are overlaid; says so where that leaves some out. */
  few(ids) {
    const all = [...new Set(ids)].filter(Boolean);
    if (all.length > MOST_OVERLAID) toast(t`At most ${MOST_OVERLAID} runs are overlaid.`);
    return new Set(all.slice(0, MOST_OVERLAID));
  }

  overlay(ids) {
    this.overlaid = this.few([this.focus, ...ids]);
    this.moved(true);
    this.show();
  }

  draw() {
    this.board = board(METRICS.map((metric) => metric.name), (point) =>
      openCheckpoint(this.jobs.find((job) => job.id === point.run), point.step));
    this.detail = new Detail(() => this.jobs, (ids) => this.overlay(ids));
    this.search = searchField(t`Search runs`, () => this.list());
    this.tabs = h('div.s-segments', { role: 'group', label: t`Which runs` },
      Object.keys(FILTERS).map((name) => h('button', { 'data-filter': name,
        'aria-pressed': String(name === this.filter), onclick: () => this.choose(name) })));
    this.tabs.lastChild.title = t`Jobs without a loss curve: imports, merges, suites and the like`;
    this.rows = h('ol.s-rows', { testid: 'runs' });
    this.nothing = h('p.s-quiet', { hidden: true }, t`No run matches.`);
    this.older = h('p.s-quiet', { hidden: true, testid: 'older' });
    this.warning = h('p.s-warning', { role: 'status', hidden: true,
      testid: 'queue-notice' });
    this.bar = new QueueBar();
    const slider = h('input', { type: 'range', min: 0, max: 0.98, step: 0.01, value: 0.0,
      label: t`Smoothing`, oninput: (e) => this.smooth(+e.target.value) });
    this.smoothed = h('output', '0');
    slider.value = localStorage.getItem('studio.smoothing') ?? 0.6;
    this.overlays = h('span.s-quiet');
    const [loss, ...small] = this.board.charts.map((chart) => chart.element);
    loss.classList.add('s-large');
    this.together = button(t`Save a report`, () => saveReport({ jobs: this.chosen().filter((id) =>
      draws(this.jobs.find((job) => job.id === id))).map(String) }), 's-tool', { hidden: true, title:
      t`The selected runs beside each other, as one HTML file` });
    this.curves = [h('div.s-chart-bar', this.overlays, this.together,
      h('label.s-smooth', t`Smoothing`, slider, this.smoothed)),
    h('section.s-charts', { label: t`Curves` }, loss, small)];
    this.main = h('div.s-main', { hidden: true }, this.detail.element, this.curves,
      this.detail.panels);
    this.welcome = h('div.s-welcome', { hidden: true },
      h('h1', t`No runs yet`),
      h('p', t`A run trains one adapter. The Train page has defaults for model, dataset and method: press Train,
        and the curves appear here.`),
      h('a.s-button.s-primary', { href: '/' }, t`Train the first adapter`));
    this.append(h('div.s-runs',
      h('aside.s-list',
        h('div.s-list-head', this.search, this.tabs, this.bar.element), this.warning,
        this.rows, this.nothing, this.older),
      this.main), this.welcome);
    this.smooth(+slider.value);
  }

  smooth(amount) {
    this.smoothed.value = amount.toFixed(2);
    try { localStorage.setItem('studio.smoothing', amount); } catch { /* private window */ }
    this.board.group.set({ smoothing: amount });
  }

  choose(filter) {
    remember({ show: filter === 'all' ? null : filter });
    this.mark(filter);
    this.list();
  }

  mark(filter) {
    this.filter = filter;
    for (const tab of this.tabs.children) {
      tab.ariaPressed = tab.dataset.filter === filter;
    }
  }

  chosen() {
    return [...new Set([this.focus, ...this.overlaid])].filter(Boolean);
  }

  /** `all`: the selected runs are among them, unless they are gone. */
  take(jobs, supervised, queue, all) {
    this.jobs = jobs;
    this.queue = queue;
    const known = new Set(jobs.map((job) => job.id));
    if (all) this.prune();
    if (all && !known.has(this.focus)) {
      if (this.focus && jobs.length && this.focus !== this.detail.deleted) {
        toast(t`Run ${this.focus} is not in the list.`);
      }
      const next = jobs.find((job) => this.overlaid.has(job.id))
        ?? jobs.find((job) => isLive(job) && job.state !== 'queued') ?? jobs.find(draws) ?? jobs[0];
      this.focus = next?.id ?? null;
      this.overlaid = new Set([...this.overlaid, this.focus].filter(Boolean));
      this.moved();
    }
    const focused = jobs.find((job) => job.id === this.focus);
    if (focused && !this.placed && !FILTERS[this.filter](focused)) this.mark(draws(focused) ? 'all' : 'other');
    this.placed ||= Boolean(focused);
    this.welcome.hidden = jobs.length > 0;
    this.main.hidden = !jobs.length;
    this.querySelector('.s-runs').hidden = !jobs.length;
    const idle = !supervised && jobs.some(isLive)
      && t`The supervisor is not running, so nothing starts. Run \`studio\` again to start it.`;
    say(this.warning, queue?.short || queue?.held || idle);
    this.show();
  }

  /** Stop overlaying deleted runs and jobs without a curve; the selected run stays in either case. */
  prune() {
    for (const id of this.overlaid) {
      const job = this.jobs.find((one) => one.id === id);
      if (!job || (id !== this.focus && !draws(job))) this.overlaid.delete(id);
    }
  }

  show() {
    this.board.group.set({
      hues: hues(this.chosen()),
      names: new Map(this.jobs.map((job) => [job.id, job.name])),
    });
    const drawn = this.jobs.some((one) => draws(one) && (one.id === this.focus || this.overlaid.has(one.id)));
    for (const part of this.curves) part.hidden = !drawn;
    const others = this.chosen().length - 1;
    this.together.hidden = !others;
    text(this.overlays, others > 0 ? t`with ${others} other run${others > 1 ? 's' : ''} overlaid`
      : t`Tick runs to overlay their curves; click a loss curve to chat with its nearest checkpoint.`);
    const job = this.jobs.find((one) => one.id === this.focus);
    if (job) this.detail.show(job, this.board.group.hues.get(job.id));
    this.list();
    const row = this.seen ? null : this.rows.querySelector('[data-focus]');
    if (row) { // a link may open a run far down the list: scrolled into view once
      row.scrollIntoView({ block: 'nearest' });
      this.seen = true;
    }
  }

  moved(step = false) {
    remember({ run: this.focus ? this.chosen().join() : null }, step);
    poke();
  }

  open(id) {
    if (!this.overlaid.has(id)) this.overlaid.clear();
    this.overlaid.add(id);
    this.focus = id;
    this.prune();
    this.moved(true);
    this.show();
  }

  toggle(id, on) {
    if (on) this.overlaid = this.few([...this.chosen(), id]);
    else if (id !== this.focus || this.overlaid.size > 1) this.overlaid.delete(id);
    if (!this.overlaid.has(this.focus)) this.focus = [...this.overlaid][0] ?? this.focus;
    this.moved();
    this.show();
  }

  list() {
    const wanted = matcher(this.search.value);
    const matches = this.jobs.filter((job) => wanted(job.id, job.name, job.model, job.data, job.method, job.state,
      job.sweep, ...job.tags, job.notes));
    for (const tab of this.tabs.children) {
      const { filter } = tab.dataset;
      text(tab, `${{ all: t`Runs`, live: t`Queue`, ended: t`Ended`, other: t`Other jobs` }[filter]} `
        + matches.filter(FILTERS[filter]).length);
    }
    const shown = matches.filter(FILTERS[this.filter]);
    if (this.filter === 'live') {
      shown.sort((a, b) => isWaiting(a) - isWaiting(b) || a.position - b.position || a.id - b.id);
    }
    this.bar.show(this.queue, this.filter === 'live', shown.filter(isWaiting).length > 1);
    this.nothing.hidden = shown.length > 0;
    say(this.older, this.queue?.unlisted && t`${count(this.queue.unlisted)} older jobs are neither listed nor searched
      here; \`studio runs --search\` finds them.`);
    keyed(this.rows, shown, (job) => job.id, (job) => this.row(job), (node, job) =>
      this.refresh(node, job));
  }

  row(job) {
    const box = h('input', { type: 'checkbox', onchange: (e) => this.toggle(job.id, e.target.checked),
      label: t`Overlay ${job.name}`, testid: `overlay-${job.id}` });
    const open = h('button.s-row-open', { testid: `run-${job.id}`,
      onclick: () => this.open(job.id) },
      ...rowLines('', '', '', ''), bar(''));
    const row = h('li', { onkeydown: (e) => this.key(e, job.id),
      ondragstart: (e) => this.drag(e, job.id), ondragover: (e) => this.over(e, row),
      ondragleave: () => row.removeAttribute('data-drop'), ondrop: (e) => this.drop(e, row, job.id) },
    box, open);
    return row;
  }

  // -- order: Alt and an arrow moves a waiting run, Alt+Home puts it first; or drag it

  key(event, id) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const job = this.jobs.find((one) => one.id === id);
    if (event.altKey && isWaiting(job) && (by || event.key === 'Home')) {
      event.preventDefault();
      this.move(id, by ? { by } : null);
    } else if (by && !event.altKey && event.target.tagName === 'BUTTON') {
      event.preventDefault();
      const next = event.currentTarget[by < 0 ? 'previousElementSibling' : 'nextElementSibling'];
      next?.querySelector('button').focus();
    }
  }

  drag(event, id) {
    this.dragged = id;
    event.dataTransfer.effectAllowed = 'move';
    event.dataTransfer.setData('text/plain', String(id));
  }

  over(event, row) {
    if (!this.dragged || !row.draggable) return;
    event.preventDefault();
    const box = row.getBoundingClientRect();
    row.dataset.drop = event.clientY < box.top + box.height / 2 ? 'before' : 'after';
  }

  drop(event, row, id) {
    event.preventDefault();
    const dragged = this.dragged, place = row.dataset.drop;
    this.dragged = null;
    row.removeAttribute('data-drop');
    if (!dragged || dragged === id) return;
    const next = row.nextElementSibling?.draggable ? Number(row.nextElementSibling.dataset.key) : null;
    if (place === 'after' && next === dragged) return;
    const before = place === 'before' ? id : next;
    this.move(dragged, before ? { before } : { last: true });
  }

  move(id, place) { return actOn(id, place ? 'move' : 'first', place ?? {}); }

  refresh(node, job) {
    const [box, open] = node.children;
    const [[name, state], [what, loss]] = [...open.children].map((line) => line.children), track = open.lastChild;
    const hue = this.board.group.hues.get(job.id);
    node.draggable = this.filter === 'live' && isWaiting(job);
    open.ariaKeyShortcuts = node.draggable ? 'Alt+ArrowUp Alt+ArrowDown Alt+Home' : null;
    node.title = node.draggable ? t`Drag, or press Alt and an arrow, to change the order` : '';
    box.style.visibility = draws(job) ? '' : 'hidden';
    box.checked = this.overlaid.has(job.id);
    node.style.setProperty('--hue', hue === undefined ? 'var(--s-line-strong)'
      : `var(--s-run-${hue})`);
    node.toggleAttribute('data-focus', job.id === this.focus);
    open.ariaCurrent = job.id === this.focus;
    text(name, job.name);
    const shown = stateName(job), last = job.last_loss == null ? '' : number(job.last_loss);
    if (changed(state, shown)) state.replaceChildren(badge(shown));
    text(what, dots(job.sweep && `⊞ ${job.sweep}`, job.tags.map((tag) => `#${tag}`), job.method, short(job.model),
      short(job.data)));
    text(loss, isLive(job) ? (last ? t`loss ${last}` : job.phase) : dots(last,
      job.forgetting != null && t`forgot ${number(job.forgetting, 2)}`, job.seconds ? duration(job.seconds)
      : ago(job.finished ?? job.started ?? job.created)));
    track.hidden = !isLive(job) || job.state === 'queued';
    fill(track, share(job));
  }
}

customElements.define('studio-runs', Runs);
