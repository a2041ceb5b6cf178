// Take a chart or a table away: a small menu with PNG, SVG, CSV and Markdown. An exported drawing is
// whole in itself and has the colours of the light scheme, which paper and documents have.

import { api, copy, h, menu, t, toast } from './dom.js';
import { csv, drawnTable, framed, markdown } from './svg_pen.js';

const SHARP = 2; // pixels of a PNG per unit of its drawing

export const colour = (name) => getComputedStyle(document.body).getPropertyValue(`--s-${name}`).trim();

const fileName = (title) => title.toLowerCase().replace(/[^a-z0-9]+/g, '-');

/** Call `draw` while the document is light; nothing is painted in between. */
export function inLight(draw) {
  const dark = [document.documentElement, document.body].filter((node) => node.classList.contains('dark'));
  for (const node of dark) node.classList.remove('dark');
  try { return draw(); } finally { for (const node of dark) node.classList.add('dark'); }
}

/** The menu of a chart. `drawing()`: {markup, width, height, title, unit, legend}, or null without
 *  values; `rows()`: the table behind it, headings first, or a promise of it. */
export function takeAway(title, { drawing, rows }) {
  const file = fileName(title);
  const svg = () => inLight(() => {
    const made = drawing();
    if (!made) throw new Error(t`${title}: no values yet.`);
    return framed(made.markup, { title, ...made, colours: colours() });
  });
  return own(menu(t`save`, item('PNG', async () => save(await png(svg()), `${file}.png`)),
    item('SVG', async () => save(new Blob([svg()], { type: 'image/svg+xml' }), `${file}.svg`)),
    item('CSV', async () => save(new Blob([csv(await rows())], { type: 'text/csv' }), `${file}.csv`)),
    item(t`Copy as Markdown`, async (node) => copy(markdown(await rows()), node))), t`Save ${title}`);
}

const colours = () => ({ ground: colour('surface'), text: colour('text'), muted: colour('muted') });

/** Save a table of the document as PNG, the best values in bold. */
export async function saveTable(title, element) {
  const table = element.querySelector('table') ?? element;
  const best = [...table.rows].map((row) => [...row.cells].map((cell) => Boolean(cell.querySelector('b'))));
  const made = inLight(() => {
    const drawn = drawnTable(cells(table), colours(), (row, column) => best[row]?.[column]);
    return framed(drawn.markup, { title, ...drawn, colours: colours() });
  });
  save(await png(made), `${fileName(title)}.png`);
}

/** The menu of a table in the document. */
export function takeTable(title, element) {
  const rows = () => cells(element.querySelector('table') ?? element);
  const file = fileName(title);
  return own(menu(t`save`, item('PNG', () => saveTable(title, element)),
    item('CSV', async () => save(new Blob([csv(rows())], { type: 'text/csv' }), `${file}.csv`)),
    item(t`Copy as Markdown`, async (node) => copy(markdown(rows()), node))), t`Save ${title}`);
}

/** The texts of a table's rows. */
export const cells = (table) => [...table.querySelectorAll('tr')].map((row) => [...row.children]
  .flatMap((cell) => [cell.textContent.replace(/^[☆★]| [↑↓]$/g, ''), ...Array(cell.colSpan - 1).fill('')]));

function own(node, label) {
  const [summary] = node.children;
  node.className += ' s-take';
  summary.className = 's-tool';
  summary.ariaLabel = label;
  return node;
}

function item(label, act) {
  const words = h('span', { 'aria-live': 'polite' }, label);
  return h('button.s-button', { onclick: async () => {
    try { await act(words); } catch (error) { toast(error.message, 'error'); }
  } }, words);
}

/** Save jobs or a conversation as one HTML file. */
export async function saveReport(values) {
  const { name, html } = await api('/api/do/report', values);
  save(new Blob([html], { type: 'text/html' }), name);
}

/** Download a blob as a file. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
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

/** An SVG element of the document. */
export function svg(name, props, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(props)) node.setAttribute(key, value);
  node.append(...children.flat(Infinity));
  return node;
}

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
