// A pen that writes SVG: the part of a canvas' 2D context that charts draw with, so that one painter
// makes both. And the frame around an exported drawing. Needs no document.

const escaped = (words) => String(words).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const at = (value) => +value.toFixed(2);

/** Estimated width of a text of 11 px: SVG has no way to measure one. */
const wide = (words) => 6.1 * String(words).length;

/** An element as text; attributes and words are escaped, children are markup. */
export const tag = (name, props, ...children) => `<${name}${Object.entries(props)
  .map(([key, value]) => ` ${key}="${escaped(value)}"`).join('')}>${children.join('')}</${name}>`;

const ANCHORS = { left: 'start', center: 'middle', right: 'end' };

export class SvgPen {
  constructor() {
    Object.assign(this, { parts: [], path: '', globalAlpha: 1, lineWidth: 1, strokeStyle: '#000', fillStyle: '#000',
      textAlign: 'left', textBaseline: 'alphabetic', clips: 0, open: [] });
  }

  get markup() { return this.parts.join(''); }

  measureText(words) { return { width: wide(words) }; }

  beginPath() { this.path = ''; }

  moveTo(x, y) { this.path += `M${at(x)} ${at(y)}`; }

  lineTo(x, y) { this.path += `L${at(x)} ${at(y)}`; }

  rect(x, y, width, height) { this.path += `M${at(x)} ${at(y)}h${at(width)}v${at(height)}h${at(-width)}z`; }

  arc(x, y, r) {
    this.path += `M${at(x - r)} ${at(y)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`;
  }

  stroke() {
    if (this.path) this.parts.push(tag('path', { d: this.path, fill: 'none', stroke: this.strokeStyle,
      'stroke-width': this.lineWidth, 'stroke-opacity': this.globalAlpha, 'stroke-linejoin': 'round' }));
  }

  fill() { this.parts.push(tag('path', { d: this.path, fill: this.fillStyle, 'fill-opacity': this.globalAlpha })); }

  fillRect(...box) {
    this.beginPath();
    this.rect(...box);
    this.fill();
  }

  fillText(words, x, y) {
    const middle = this.textBaseline === 'middle' ? 4 : 0; // not every reader knows dominant-baseline
    this.parts.push(tag('text', { x: at(x), y: at(y + middle), fill: this.fillStyle,
      'text-anchor': ANCHORS[this.textAlign] }, escaped(words)));
  }

  save() { this.open.push(0); }

  clip() {
    this.clips += 1;
    this.open[this.open.length - 1] += 1;
    const id = `plot-${this.clips}`;
    this.parts.push(tag('clipPath', { id }, tag('path', { d: this.path })), `<g clip-path="url(#${id})">`);
  }

  restore() { this.parts.push('</g>'.repeat(this.open.pop())); }
}

const ROW = 22, GAP = 18, LONGEST = 46;

/** A drawing of a table, headings first: {markup, width, height}. Numbers stand at the right, `bold(row, column)` in
 *  bold. */
export function drawnTable(rows, { text, muted }, bold = () => false) {
  const short = (words) => (words.length > LONGEST ? `${words.slice(0, LONGEST - 1)}…` : words);
  const shown = rows.map((row) => row.map((one) => short(String(one ?? '').trim())));
  const widths = shown[0].map((_, i) => Math.max(...shown.map((row) => wide(row[i] ?? ''))) + GAP);
  const right = widths.map((_, i) => i > 0 && shown.slice(1).every((row) => /^(–|[×−-]?\s?\d.*)$/.test(row[i] ?? '–')));
  const starts = widths.map((_, i) => EDGE + widths.slice(0, i).reduce((sum, one) => sum + one, 0));
  const width = Math.ceil(EDGE + widths.reduce((sum, one) => sum + one, 0)), height = ROW * shown.length;
  const cell = (words, n, i) => tag('text', { x: at(right[i] ? starts[i] + widths[i] - GAP : starts[i]),
    y: ROW * n + 15, fill: n ? text : muted, 'text-anchor': right[i] ? 'end' : 'start',
    ...(!n || bold(n, i) ? { 'font-weight': 600 } : {}) }, escaped(words));
  const lines = shown.slice(1).map((_, n) => tag('path', { d: `M${EDGE} ${ROW * (n + 1)}H${width - EDGE}`,
    stroke: muted, 'stroke-opacity': 0.4 }));
  return { markup: [...lines, ...shown.flatMap((row, n) => row.map((one, i) => cell(one, n, i)))].join(''), width,
    height };
}

const FONT = 'Arial, "Liberation Sans", "Segoe UI", sans-serif';
const LINE = 18, EDGE = 12;

/** A whole SVG file: title, legend and a drawing of this size below them.
 *  `legend`: [{colour, name}]; `colours`: {ground, text, muted}. */
export function framed(markup, { width, height, title, unit = '', legend = [], colours }) {
  const marks = [], rows = [0];
  for (const { colour, name } of legend) {
    const room = 22 + wide(name) + 14;
    if (rows.at(-1) && rows.at(-1) + room > width - 2 * EDGE) rows.push(0);
    const x = EDGE + rows.at(-1), y = 34 + LINE * (rows.length - 1);
    marks.push(tag('path', { d: `M${at(x)} ${y}h14`, stroke: colour, 'stroke-width': 3 }),
      tag('text', { x: at(x + 20), y: y + 4, fill: colours.text }, escaped(name)));
    rows[rows.length - 1] += room;
  }
  const top = 26 + (legend.length ? LINE * rows.length : 0) + 4, tall = top + height + 6;
  const head = tag('text', { x: EDGE, y: 19, 'font-size': 13, 'font-weight': 600, fill: colours.text },
    escaped(title), unit && tag('tspan', { fill: colours.muted, 'font-weight': 400 }, ` ${escaped(unit)}`));
  return `<?xml version="1.0" encoding="UTF-8"?>\n${tag('svg', { xmlns: 'http://www.w3.org/2000/svg', width,
    height: tall, viewBox: `0 0 ${width} ${tall}`, 'font-family': FONT, 'font-size': 11 },
  tag('title', {}, escaped(title)), tag('path', { d: `M0 0h${width}v${tall}h${-width}z`, fill: colours.ground }), head,
  ...marks, tag('g', { transform: `translate(0 ${top})` }, markup))}\n`;
}

/** CSV of rows, in which no text is read as a formula. */
export const csv = (rows) => rows.map((row) => row.map(csvCell).join()).join('\r\n') + '\r\n';

function csvCell(value) {
  if (value == null) return '';
  if (typeof value === 'number') return Number.isFinite(value) ? String(value) : '';
  const safe = /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

export function markdown([head, ...rows]) {
  const cell = (value) => String(value ?? '').trim().replace(/\s+/g, ' ').replace(/[\\|]/g, '\\$&');
  const line = (cells) => `| ${cells.map(cell).join(' | ')} |`;
  const right = (i) => rows.length && rows.every((row) => /^[–\d−±×.,\s\u202f-]*$/.test(String(row[i] ?? '')));
  return [line(head), `|${head.map((_, i) => (right(i) ? ' ---: ' : ' --- ')).join('|')}|`, ...rows.map(line), '']
    .join('\n');
}
