// The pixels of a chart (scale, axes, lines, cursor) and its arithmetic (ticks, smoothing, nearest
// point), which needs neither canvas nor document.

import { count } from './dom.js';

/** About `wanted` round values covering [low, high]; at least two where the smallest step has them. */
export function ticks(low, high, wanted, whole = false) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const steps = [1, 2, 5, 10].map((m) => (whole ? Math.max(1, Math.round(m * power)) : m * power));
  let found = [];
  for (let at = steps.findIndex((step) => step >= rough * 0.7); at >= 0 && found.length < 2; at--) {
    found = multiples(steps[at], low, high);
  }
  return found;
}

function multiples(step, low, high) {
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) {
    found.push(+(k * step).toPrecision(12));
  }
  return found;
}

/** Powers of ten in [low, high], with 2 and 5 between them where there are few. */
export function logTicks(low, high) {
  const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
  const between = to - from <= 2 ? [1, 2, 5] : [1];
  const found = [];
  for (let e = from; e <= to; e++) {
    for (const m of between) {
      const value = m * 10 ** e;
      if (value >= low && value <= high) found.push(+value.toPrecision(6));
    }
  }
  return found;
}

/** Exponential moving average that starts unbiased and follows uneven steps; its unit is the usual
 *  distance of two points, so that a thinned curve is smoothed like a whole one. */
export function smooth(x, y, amount) {
  if (!amount) return y;
  const out = new Array(y.length);
  const usual = Math.max(1, (x.at(-1) - x[0]) / Math.max(1, x.length - 1));
  let mean = 0, weight = 0;
  for (let i = 0; i < y.length; i++) {
    const gap = i ? Math.max(0.25, (x[i] - x[i - 1]) / usual) : 1;
    const keep = amount ** Math.min(gap, 50);
    if (Number.isFinite(y[i])) {
      mean = mean * keep + y[i] * (1 - keep);
      weight = weight * keep + (1 - keep);
    }
    out[i] = weight ? mean / weight : y[i];
  }
  return out;
}

export function nearest(x, value) {
  let low = 0, high = x.length - 1;
  if (high < 0) return -1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] < value) low = middle; else high = middle;
  }
  return Math.abs(x[low] - value) <= Math.abs(x[high] - value) ? low : high;
}

/** [low, high] of the values that are visible, with a little air; null when there are none. A line without a
 *  point in sight counts with the two that it joins across it. */
export function extent(lines, from, to, log) {
  let low = Infinity, high = -Infinity;
  for (const { x, y: smoothed, raw } of lines) {
    const y = raw ?? smoothed; // a spike must stay in sight, however smooth the line
    const after = x.findIndex((step) => step >= from);
    if (after < 0 || x[0] > to) continue; // it ends before, or begins later
    const first = x[after] > to ? after - 1 : after;
    for (let i = first; i < x.length && (i <= after || x[i] <= to); i++) {
      if (!Number.isFinite(y[i]) || (log && y[i] <= 0)) continue;
      if (y[i] < low) low = y[i];
      if (y[i] > high) high = y[i];
    }
  }
  if (low > high) return null;
  if (log) {
    const air = Math.max(1.02, (high / low) ** 0.06);
    return [low / air, high * air];
  }
  const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 ? Math.max(0, low - air) : low - air, high + air];
}

const PAD = { left: 46, right: 12, top: 8, bottom: 20 };
const DOT = 2.5;
const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();

export class Painter {
  constructor(chart, pen, width, height) {
    Object.assign(this, { chart, pen, width, height });
  }

  paint(lines, [from, to], range) {
    this.scale = this.makeScale(from, to, range);
    this.drawAxes();
    this.drawLines(lines);
    return this.scale;
  }

  makeScale(from, to, [low, high]) {
    const { width, height } = this;
    const { log } = this.chart;
    const wide = width - PAD.left - PAD.right, tall = height - PAD.top - PAD.bottom;
    const shape = log ? Math.log10 : (v) => v;
    const a = shape(low), b = shape(high);
    return {
      from, to, low, high,
      x: (v) => PAD.left + ((v - from) / (to - from)) * wide,
      y: (v) => PAD.top + (1 - (shape(v) - a) / (b - a)) * tall,
      step: (px) => from + ((px - PAD.left) / wide) * (to - from),
    };
  }

  drawAxes() {
    const { pen, width, height } = this;
    const { from, to, low, high, x, y } = this.scale;
    pen.font = `11px ${css('--s-sans') || 'sans-serif'}`;
    pen.lineWidth = 1;
    pen.strokeStyle = css('--s-grid');
    pen.fillStyle = css('--s-faint');
    pen.textAlign = 'right';
    pen.textBaseline = 'middle';
    const rows = Math.max(3, Math.floor((height - 30) / 24));
    const marks = this.chart.log ? logTicks(low, high) : ticks(low, high, rows);
    for (const mark of marks) {
      const at = Math.round(y(mark)) + 0.5;
      pen.beginPath();
      pen.moveTo(PAD.left, at);
      pen.lineTo(width - PAD.right, at);
      pen.stroke();
      pen.fillText(label(mark), PAD.left - 6, at);
    }
    pen.textAlign = 'center';
    pen.textBaseline = 'alphabetic';
    for (const mark of ticks(from, to, Math.max(2, Math.floor(width / 90)), true)) {
      const words = count(mark);
      const half = pen.measureText(words).width / 2;
      pen.fillText(words, Math.min(x(mark), width - half - 2), height - 5);
    }
  }

  drawLines(lines) {
    const { pen, width, height } = this;
    const { hues } = this.chart.group;
    // On a dark ground a thin line needs more of its colour to be seen.
    const raws = document.documentElement.classList.contains('dark') ? 0.4 : 0.25;
    const whole = this.chart.options.dots ? DOT + 1 : 0; // the dot at the left end
    pen.save();
    pen.beginPath();
    pen.rect(PAD.left - whole, 0, width - PAD.left - PAD.right + whole + 4, height - PAD.bottom + 2);
    pen.clip();
    pen.lineJoin = 'round';
    for (const { run, x, y, raw } of lines) {
      pen.strokeStyle = css(`--s-run-${hues.get(run)}`);
      if (raw) this.stroke(x, raw, 1, raws);
      this.stroke(x, y, 1.6, 1);
      if (x.length === 1 || this.chart.options.dots) this.dots(x, y);
    }
    pen.restore();
  }

  stroke(xs, ys, width, alpha) {
    const { pen } = this;
    const { x, y } = this.scale;
    pen.globalAlpha = alpha;
    pen.lineWidth = width;
    pen.beginPath();
    let drawing = false;
    for (let i = 0; i < xs.length; i++) {
      if (!Number.isFinite(ys[i]) || (this.chart.log && ys[i] <= 0)) { drawing = false; continue; }
      if (drawing) pen.lineTo(x(xs[i]), y(ys[i])); else pen.moveTo(x(xs[i]), y(ys[i]));
      drawing = true;
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }

  dots(xs, ys) {
    const { pen } = this;
    const { x, y } = this.scale;
    pen.fillStyle = pen.strokeStyle;
    for (let i = 0; i < xs.length; i++) {
      if (!Number.isFinite(ys[i])) continue;
      pen.beginPath();
      pen.arc(x(xs[i]), y(ys[i]), DOT, 0, 7);
      pen.fill();
    }
  }

  drawCursor(lines) {
    const { pen, height } = this;
    const { drag, group } = this.chart;
    const { cursor } = group;
    const { from, to, x, y } = this.scale;
    if (drag) {
      pen.fillStyle = css('--s-accent');
      pen.globalAlpha = 0.12;
      const [a, b] = [drag.start, drag.now].sort((p, q) => p - q);
      pen.fillRect(a, PAD.top, b - a, height - PAD.top - PAD.bottom);
      pen.globalAlpha = 1;
    }
    if (cursor === null || cursor < from || cursor > to) return;
    const at = Math.round(x(cursor)) + 0.5;
    pen.strokeStyle = css('--s-line-strong');
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(at, PAD.top);
    pen.lineTo(at, height - PAD.bottom);
    pen.stroke();
    for (const line of lines) {
      const i = nearest(line.x, cursor);
      if (!Number.isFinite(line.y[i])) continue;
      pen.fillStyle = css(`--s-run-${group.hues.get(line.run)}`);
      pen.beginPath();
      pen.arc(x(line.x[i]), y(line.y[i]), 3.5, 0, 7);
      pen.fill();
    }
    this.drawStep(at, count(Math.round(cursor)));
  }

  drawStep(at, words) {
    const { pen, height } = this;
    pen.font = `600 11px ${css('--s-sans') || 'sans-serif'}`;
    const wide = pen.measureText(words).width + 10;
    pen.fillStyle = css('--s-text');
    pen.fillRect(at - wide / 2, height - PAD.bottom + 2, wide, 16);
    pen.fillStyle = css('--s-surface');
    pen.textAlign = 'center';
    pen.textBaseline = 'alphabetic';
    pen.fillText(words, at, height - 6);
  }
}

/** A mark of an axis, which is round: with all its digits, as its neighbours may share the first ones. */
export function label(value) {
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential().replace('e-', 'e−');
  const [unit, letter] = size >= 1e6 ? [1e6, 'M'] : size >= 1e4 ? [1e3, 'k'] : [1, ''];
  return +(value / unit).toPrecision(7) + letter;
}
