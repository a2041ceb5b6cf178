// What a chart looks like on its canvas: scale, axes, lines, cursor. It reads the custom properties of
// theme.py and a chart's state (`log`, `drag`, `group`), and changes nothing but pixels.

import { count } from './dom.js';
import { logTicks, nearest, ticks } from './axis.js';

const PAD = { left: 46, right: 12, top: 8, bottom: 20 };
const DOT = 2.5;
const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();

export class Painter {
  constructor(chart, pen, width, height) {
    Object.assign(this, { chart, pen, width, height });
  }

  /** Draw everything and return the scale that was used. */
  paint(lines, [from, to], range) {
    this.scale = this.makeScale(from, to, range);
    this.drawAxes();
    this.drawLines(lines);
    this.drawCursor(lines);
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

function label(value) {
  const size = Math.abs(value);
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential().replace('e-', 'e−');
  return String(+value.toPrecision(4));
}
