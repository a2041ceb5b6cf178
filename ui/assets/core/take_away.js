// Take a chart or a table away: a small menu with PNG, SVG, CSV and Markdown. An exported drawing is
// whole in itself and has the colours of the light scheme, which paper and documents have.

import { api, copy, h, menu, t, toast } from './dom.js';
import { csv, drawnTable, framed, markdown } from './svg_pen.js';

const SHARP = 2; // pixels of a PNG per unit of its drawing

export const colour = (name) => getComputedStyle(document.body).getPropertyValue(`--s-${name}`).trim();

export const fileName = (title) => title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, '-');

/** Call `draw` while the document is light; nothing is painted in between. */
function inLight(draw) {
  const dark = [document.documentElement, document.body].filter((node) => node.classList.contains('dark'));
  for (const node of dark) node.classList.remove('dark');
  try { return draw(); } finally { for (const node of dark) node.classList.add('dark'); }
}

/** The menu of a chart. `drawing()`: {markup, width, height, title, unit, legend}, or null without
 *  values; `rows()`: the table behind it, headings first, or a promise of it. */
export function takeAway(title, { drawing, rows }) {
  const svg = () => inLight(() => {
    const made = drawing();
    if (!made) throw new Error(t`${title}: no values in view.`);
    return framed(made.markup, { title, ...made, colours: colours() });
  });
  const file = fileName(title);
  return taken(title, async () => save(await png(svg()), `${file}.png`), rows, rows,
    item('SVG', () => save(svg(), `${file}.svg`, 'image/svg+xml')));
}

const colours = () => ({ ground: colour('surface'), text: colour('text'), muted: colour('muted') });

async function saveTable(title, element) {
  const table = element.querySelector('table') ?? element;
  const best = [...table.rows].map((row) => [...row.cells].map((cell) => Boolean(cell.querySelector('b'))));
  const made = inLight(() => {
    const drawn = drawnTable(cells(table), colours(), (row, column) => best[row]?.[column]);
    return framed(drawn.markup, { title, ...drawn, colours: colours() });
  });
  save(await png(made), `${fileName(title)}.png`);
}

/** The menu of the `RankedTable` that `ranked()` returns: its CSV has the values, the rest is as shown. */
export const takeTable = (title, ranked) => taken(title, () => saveTable(title, ranked().element),
  () => cells(ranked().element), () => ranked().values());

export const cells = (table) => [...table.querySelectorAll('tr')].map((row) => [...row.children]
  .flatMap((cell) => [cell.textContent.replace(/^[☆★]| [↑↓]$/g, ''), ...Array(cell.colSpan - 1).fill('')]));

function taken(title, drawn, rows, values, ...more) {
  const node = menu(t`save`, item('PNG', drawn), ...more,
    item('CSV', async () => save(csv(await values()), `${fileName(title)}.csv`, 'text/csv')),
    item(t`Copy as Markdown`, async (words) => copy(markdown(await rows()), words)));
  const [summary] = node.children;
  node.className += ' s-take';
  summary.className = 's-tool';
  summary.ariaLabel = t`Save ${title}`;
  return node;
}

function item(label, act) {
  const words = h('span', { 'aria-live': 'polite' }, label);
  return h('button.s-button', { onclick: async () => {
    try { await act(words); } catch (error) { toast(error.message, 'error'); }
  } }, words);
}

export async function saveReport(values) {
  const { name, html } = await api('/api/do/report', values);
  save(html, name, 'text/html');
}

export function save(content, name, type) {
  const url = URL.createObjectURL(type ? new Blob([content], { type }) : content);
  h('a', { href: url, download: name }).click();
  const open = document.activeElement?.closest('.s-take');
  if (open) open.open = false;
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

async function png(svg) {
  const url = URL.createObjectURL(new Blob([svg], { type: 'image/svg+xml' }));
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = h('canvas', { width: image.width * SHARP, height: image.height * SHARP });
    canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((done) => canvas.toBlob(done, 'image/png'));
  } finally { URL.revokeObjectURL(url); }
}

const SVG = 'http://www.w3.org/2000/svg';
const DRAWN = ['fill', 'stroke', 'stroke-width', 'font-size', 'font-weight', 'opacity'];

export function svg(name, props, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(props)) node.setAttribute(key, value);
  node.append(...children.flat(Infinity));
  return node;
}

export const tick = (x, y, words, anchor = 'middle', more = {}) => svg('text', { x, y, 'text-anchor': anchor,
  class: 's-tick', ...more }, words);

/** The inside of an SVG element with its styles written into each part. */
export function resolved(element) {
  const copied = element.cloneNode(true);
  const [from, to] = [element, copied].map((one) => [...one.querySelectorAll('*')]);
  from.forEach((part, i) => {
    const style = getComputedStyle(part);
    for (const name of DRAWN) to[i].setAttribute(name, style.getPropertyValue(name));
    to[i].removeAttribute('class');
  });
  return [...copied.childNodes].map((part) => new XMLSerializer().serializeToString(part)).join('');
}
