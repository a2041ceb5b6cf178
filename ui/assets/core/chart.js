// Line charts on a canvas: several runs, log axis, smoothing, drag to zoom, hover, keys, table.
// Charts of a group share zoom, cursor and smoothing. New points redraw the same canvas at the next
// frame, so nothing flickers, and zoom and hover survive while a run goes on.

import { extent, nearest, Painter, smooth } from './chart_canvas.js';
import { api, button, compact, count, h, keyed, number, t, table, text } from './dom.js';
import { SvgPen } from './svg_pen.js';
import { colour, takeAway } from './take_away.js';

const NEAR = 24; // a click as close to a curve, in pixels, means its point

export class Group {
  constructor() {
    this.zoom = null;
    this.cursor = null;
    this.smoothing = 0;
    this.fine = null; // {zoom, series}: the zoomed part at full detail, where it was thinned
    this.hues = new Map();
    this.names = new Map();
    this.charts = new Set();
    addEventListener('studio:theme', () => this.redraw());
  }

  redraw() {
    for (const chart of this.charts) chart.redraw();
  }

  set(changes) {
    Object.assign(this, changes);
    if ('zoom' in changes) this.onZoom?.(this.zoom);
    this.redraw();
  }
}

export class Chart {
  /** `options`: name, title, unit, format, names (in the legend), log, pick({run, step}) on a click. */
  constructor(group, options) {
    this.group = group;
    this.options = { format: number, ...options };
    this.lines = new Map(); // run -> {x, y, thinned}
    this.log = Boolean(options.log);
    this.element = this.build();
    this.pending = 0;
    this.draws = 0;
    group.charts.add(this);
    new ResizeObserver(() => this.redraw()).observe(this.plot);
    this.listen();
  }

  build() {
    const { title, unit } = this.options;
    this.canvas = h('canvas', { tabindex: '0', role: 'img', label: title });
    this.empty = h('p.s-chart-empty');
    this.plot = h('div.s-plot', this.canvas, this.empty);
    this.legend = h('ul.s-legend');
    this.table = h('div.s-chart-table', { hidden: true, tabindex: '0' });
    this.logButton = button(t`log`, () => this.toggleLog(), 's-tool',
      { 'aria-pressed': String(this.log), title: t`Logarithmic axis` });
    this.tableButton = button(t`table`, () => this.toggleTable(), 's-tool',
      { 'aria-pressed': 'false', title: t`Show the values as a table` });
    this.resetButton = button(t`reset zoom`, () => this.group.set({ zoom: null }), 's-tool',
      { hidden: true });
    return h('figure.s-chart', { 'data-metric': this.options.name, 'data-draws': '0',
      hidden: Boolean(this.options.optional) },
      h('figcaption', h('strong', title), unit && h('span', unit),
        this.legend, h('span.s-tools', this.resetButton, this.logButton, this.tableButton,
          takeAway(title, { drawing: () => this.drawing(), rows: () => this.rows() }))),
      this.plot, this.table);
  }

  redraw() {
    if (!this.pending) this.pending = requestAnimationFrame(() => this.draw());
  }

  shown() {
    const known = [...this.lines].filter(([run, l]) => l.x.length && this.group.hues.has(run));
    return known.map(([run, line]) => {
      const { x, y } = this.detailed(run, line);
      const smoothed = this.options.smooth === false ? y : smooth(x, y, this.group.smoothing);
      return { run, x, y: smoothed, raw: smoothed === y ? null : y };
    });
  }

  detailed(run, line) {
    const { fine, zoom } = this.group;
    const part = fine && fine.zoom === zoom && fine.series.get(this.options.name)?.get(run);
    if (!part?.x.length) return line;
    const [first, last] = [part.x[0], part.x.at(-1)];
    const before = line.x.findIndex((step) => step >= first);
    const after = line.x.findIndex((step) => step > last);
    const join = (key) => [...line[key].slice(0, Math.max(0, before)), ...part[key],
      ...(after < 0 ? [] : line[key].slice(after))];
    return { x: join('x'), y: join('y') };
  }

  /** The steps that all charts of the group show, so that they stand one below the other. */
  domain() {
    if (this.group.zoom) return this.group.zoom;
    let first = Infinity, last = -Infinity;
    for (const chart of this.group.charts) {
      for (const [run, { x }] of chart.lines) {
        if (!x.length || !this.group.hues.has(run)) continue;
        first = Math.min(first, x[0]);
        last = Math.max(last, x.at(-1));
      }
    }
    if (first >= last) return [Math.max(0, last - 1), last + 1];
    return [first < last * 0.1 ? 0 : first, last];
  }

  view(lines) {
    const span = lines.length ? this.domain() : [0, 1];
    return [span, extent(lines, ...span, this.log)];
  }

  draw() {
    this.pending = 0;
    const lines = this.shown();
    this.fillLegend(lines);
    if (!this.table.hidden) this.fillTable(lines);
    this.resetButton.hidden = !this.group.zoom;
    this.element.dataset.points = lines.reduce((sum, line) => sum + line.x.length, 0);
    const { clientWidth: width, clientHeight: height } = this.plot;
    if (!width || !height) return; // behind its table
    const ratio = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio)
        || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const pen = this.canvas.getContext('2d');
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const [span, range] = this.view(lines);
    this.empty.hidden = Boolean(range);
    text(this.empty, lines.length ? t`No values in this range` : this.options.empty ?? t`No values yet`);
    this.scale = null;
    if (range) {
      const painter = new Painter(this, pen, width, height);
      this.scale = painter.paint(lines, span, range);
      painter.drawCursor(lines);
    }
    this.element.dataset.draws = ++this.draws;
  }

  fillLegend(lines) {
    const { cursor } = this.group;
    keyed(this.legend, lines, (line) => line.run,
      () => h('li', h('i'), h('span.s-name'), h('b')),
      (node, line) => {
        const i = cursor === null ? line.y.length - 1 : nearest(line.x, cursor);
        const name = this.name(line);
        const own = line.raw ?? line.y; // the legend never shows a smoothed value
        node.title = line.raw ? t`${name}; the bold line is smoothed: ${this.options.format(line.y[i])}` : name;
        node.firstChild.style.background = `var(--s-run-${this.group.hues.get(line.run)})`;
        text(node.children[1], this.options.names && lines.length > 1 ? name : '');
        text(node.lastChild, this.options.format(own[i]));
      });
    const values = lines.map((line) => t`${this.group.names.get(line.run) ?? line.run}:
      ${this.options.format((line.raw ?? line.y).at(-1))} at step ${count(line.x.at(-1))}`).join('; ');
    this.canvas.setAttribute('aria-label', `${this.options.title}. ${values || t`No values yet`}`);
  }

  fillTable(lines) {
    const [heads, ...rows] = this.byStep(lines);
    this.table.replaceChildren(table(heads, rows.reverse().slice(0, 500).map(([step, ...values]) => [count(step),
      ...values.map((one) => (one === undefined ? '' : this.options.format(one)))]), { class: '' }));
  }

  name(line) { return this.group.names.get(line.run) ?? t`run ${line.run}`; }

  drawing(width = 960, height = 400) {
    const lines = this.shown(), [span, range] = this.view(lines);
    if (!range) return null;
    const pen = new SvgPen();
    new Painter(this, pen, width, height).paint(lines, span, range);
    return { markup: pen.markup, width, height, unit: this.options.unit, legend: lines.map((line) => ({
      colour: colour(`run-${this.group.hues.get(line.run)}`), name: this.name(line) })) };
  }

  /** Every value, by step, a column for each run; thinned curves are fetched again. */
  async rows() {
    let lines = this.shown();
    if (lines.some(({ run }) => this.lines.get(run).thinned)) {
      const { data } = await api(`/api/metrics?${new URLSearchParams({ runs: lines.map((line) => line.run).join(),
        names: this.options.name, bins: 0 })}`);
      lines = lines.map(({ run }) => ({ run, ...data[this.options.name][run] }));
    }
    return this.byStep(lines);
  }

  byStep(lines) {
    const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    const values = lines.map(({ x, y, raw }) => new Map(x.map((step, i) => [step, (raw ?? y)[i]])));
    return [[t`Step`, ...lines.map((line) => this.name(line))],
      ...steps.map((step) => [step, ...values.map((one) => one.get(step))])];
  }

  toggleLog() {
    this.log = !this.log;
    this.logButton.ariaPressed = this.log;
    this.redraw();
  }

  toggleTable() {
    this.table.hidden = !this.table.hidden;
    this.plot.hidden = !this.table.hidden;
    this.tableButton.ariaPressed = !this.table.hidden;
    this.redraw();
  }

  listen() {
    const place = (event) => event.clientX - this.canvas.getBoundingClientRect().left;
    this.canvas.addEventListener('pointermove', (event) => {
      if (!this.scale) return;
      if (this.drag) this.drag.now = place(event);
      const near = Boolean(this.options.pick && !this.drag && this.under(event));
      this.canvas.toggleAttribute('data-point', near);
      this.canvas.title = near ? this.options.hint : '';
      this.group.set({ cursor: this.scale.step(place(event)) });
    });
    this.canvas.addEventListener('pointerleave', () => {
      if (!this.drag) this.group.set({ cursor: null });
    });
    this.canvas.addEventListener('pointerdown', (event) => {
      if (event.button !== 0 || !this.scale) return;
      this.canvas.setPointerCapture(event.pointerId);
      this.drag = { start: place(event), now: place(event) };
    });
    this.canvas.addEventListener('pointerup', (event) => {
      const { drag } = this;
      this.drag = null;
      if (!drag || !this.scale) return this.redraw();
      if (Math.abs(drag.now - drag.start) < 6) return this.click(this.under(event));
      const [a, b] = [drag.start, drag.now].sort((p, q) => p - q).map(this.scale.step);
      if (b - a >= 1) this.group.set({ zoom: [Math.max(0, a), b] });
    });
    this.canvas.addEventListener('pointercancel', () => { this.drag = null; }); // a touch that scrolls
    this.canvas.addEventListener('dblclick', () => {
      clearTimeout(this.picking);
      this.group.set({ zoom: null });
    });
    this.canvas.addEventListener('keydown', (event) => this.key(event));
    this.canvas.addEventListener('blur', () => this.group.set({ cursor: null }));
  }

  /** The run and step of the curve's point under the pointer; null where no curve is near. */
  under(event) {
    const box = this.canvas.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    const found = this.shown().map((line) => this.closest(line, left, top))
      .sort((a, b) => a.away - b.away)[0];
    return found && found.away <= NEAR ? found : null;
  }

  closest({ run, x, y, raw }, left, top) {
    const i = nearest(x, this.scale.step(left));
    const ys = [y[i], raw?.[i]].filter(Number.isFinite).map(this.scale.y);
    return { run, step: x[i], away: Math.min(...ys.map((at) =>
      Math.hypot(this.scale.x(x[i]) - left, at - top))) };
  }

  /** Pick a point; in a zoomed chart only when no double click follows, which resets the zoom. */
  click(point) {
    clearTimeout(this.picking);
    if (!this.group.zoom) return this.pick(point);
    this.picking = setTimeout(() => this.pick(point), 500);
  }

  pick(point) {
    if (point) this.options.pick?.(point);
    this.redraw();
  }

  key(event) {
    if (!this.scale && !this.group.zoom) return; // zoomed, also where no point is in sight
    const [from, to] = this.domain();
    const span = to - from, at = this.group.cursor ?? to;
    const near = Math.min(span, Math.max(1, span / 2)), start = Math.min(Math.max(from, at - near / 2), to - near);
    if (event.key === 'Enter') {
      const line = this.shown()[0];
      if (line) this.pick({ run: line.run, step: line.x[nearest(line.x, at)] });
      return;
    }
    const actions = {
      ArrowLeft: () => ({ cursor: Math.max(from, at - Math.max(1, span / 50)) }),
      ArrowRight: () => ({ cursor: Math.min(to, at + Math.max(1, span / 50)) }),
      Home: () => ({ cursor: from }),
      End: () => ({ cursor: to }),
      '+': () => ({ zoom: [start, start + near] }),
      '-': () => ({ zoom: null }),
      Escape: () => ({ zoom: null, cursor: null }),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    this.group.set(actions[event.key]());
  }
}

export const METRICS = [
  { name: 'loss', title: t`Training loss`, names: true, empty: t`The first step draws the first point` },
  { name: 'eval_loss', title: t`Held-out loss`, smooth: false, dots: true,
    empty: t`Drawn at the first evaluation` },
  ...optional([
    ['reward', t`Reward, mean`], ['eval_reward', t`Held-out reward`], ['reward_std', t`Reward, deviation in a group`],
    ['frac_reward_zero_std', t`Groups without a signal`], ['completion_length', t`Answer length, tokens`],
    ['kl', t`KL to the base, per token`],
  ]),
  { name: 'forgetting', title: t`Forgetting (KL from the base)`, optional: true, smooth: false, dots: true },
  { name: 'learning_rate', title: t`Learning rate`, smooth: false },
  { name: 'grad_norm', title: t`Gradient norm` },
  { name: 'tokens_per_second', title: t`Tokens per second`, format: compact },
  ...optional([
    ['expert_balance', t`Evenness of the routers`],
    ['eval_rewards_accuracies', t`Held-out reward accuracy`], ['rewards_accuracies', t`Reward accuracy`],
    ['rewards_margins', t`Reward margin`], ['eval_kl', t`KL to the reference, per token`],
    ['rewards_chosen', t`Reward, chosen`], ['rewards_rejected', t`Reward, rejected`],
    ['logps_chosen', t`Log-probability, chosen`], ['logps_rejected', t`Log-probability, rejected`],
    ['answer_tokens', t`Length of sampled answers, in tokens`],
  ]),
];

function optional(some) {
  return some.map(([name, title]) => ({ name, title, optional: true,
    ...(name.startsWith('eval_') && { smooth: false, dots: true }) }));
}

const LOSSES = ['loss', 'eval_loss'];
const HINT = t`A click opens the nearest checkpoint in Compare`;

/** Charts for these metrics in one group; `update(series)` feeds them all. A click on a point of a
 *  loss curve calls `pick({run, step})`, where one is given. */
export function board(names, pick = null) {
  const group = new Group();
  const charts = METRICS.filter((m) => names.includes(m.name)).map((m) => new Chart(group,
    pick && LOSSES.includes(m.name) ? { ...m, pick, hint: HINT } : m));
  const update = (series) => {
    for (const chart of charts) {
      chart.lines = series.get(chart.options.name) ?? new Map();
      const rewarded = chart.options.name === 'eval_loss' && series.has('reward'); // it has none
      chart.element.hidden = Boolean(chart.options.optional || rewarded) && !chart.lines.size;
    }
    group.redraw();
  };
  group.onZoom = (zoom) => refine(group, charts, zoom);
  return { group, charts, update };
}

async function refine(group, charts, zoom) {
  const thinned = charts.some((chart) => [...chart.lines.values()].some((line) => line.thinned));
  if (!zoom || !thinned) return;
  const asked = new URLSearchParams({ runs: [...group.hues.keys()].join(), low: Math.floor(zoom[0]),
    high: Math.ceil(zoom[1]), names: charts.map((chart) => chart.options.name).join() });
  const answer = await api(`/api/metrics?${asked}`).catch(() => null);
  if (!answer || group.zoom !== zoom) return;
  const series = new Map(Object.entries(answer.data).map(([name, runs]) =>
    [name, new Map(Object.entries(runs).map(([run, line]) => [Number(run), line]))]));
  group.set({ fine: { zoom, series } });
}
