// Markdown of a model as document nodes, and the word diff of two answers. Links stay text and HTML
// stays characters, so an answer can show anything and do nothing.

import { button, copy, h, t } from '../core/dom.js';

const FENCE = /^\s*(`{3,}|~{3,})\s*([\w+-]*)\s*$/;
const ITEM = /^\s*(?:[-*+]|\d{1,3}[.)])\s+(.*)$/;
const INLINE = /(`+)(.+?)\1|\*\*(\S(?:.*?\S)?)\*\*|(?<![\w*])\*(\S(?:.*?\S)?)\*(?![\w*])/g;

/** Return the nodes of a text that may still be growing. */
export function markdown(source) {
  const lines = source.split('\n'), nodes = [];
  let at = 0;
  const run = (fits) => {
    const taken = [];
    while (at < lines.length && fits(lines[at])) taken.push(lines[at++]);
    return taken;
  };
  while (at < lines.length) {
    const fence = FENCE.exec(lines[at]), head = /^(#{1,4})\s+(.*)$/.exec(lines[at]);
    if (fence) {
      at += 1;
      const body = run((line) => !line.trim().startsWith(fence[1])).join('\n');
      at += 1;
      nodes.push(code(body, fence[2]));
    } else if (head) {
      at += 1;
      nodes.push(h('p.s-md-head', inline(head[2])));
    } else if (ITEM.test(lines[at])) {
      const ordered = /^\s*\d/.test(lines[at]);
      const items = run((line) => ITEM.test(line) && /^\s*\d/.test(line) === ordered);
      nodes.push(h(ordered ? 'ol' : 'ul', ordered ? { start: parseInt(items[0], 10) } : {},
        items.map((line) => h('li', inline(ITEM.exec(line)[1])))));
    } else if (lines[at].startsWith('>')) {
      const quoted = run((line) => line.startsWith('>')).map((line) => line.replace(/^>\s?/, ''));
      nodes.push(h('blockquote', inline(quoted.join('\n'))));
    } else if (!lines[at].trim()) {
      at += 1;
    } else {
      const plain = run((line) => line.trim() && !FENCE.test(line) && !ITEM.test(line)
        && !/^(#{1,4}\s|>)/.test(line));
      nodes.push(h('p', inline(plain.length ? plain.join('\n') : lines[at++])));
    }
  }
  return nodes.flatMap((node) => [node, '\n']);
}

/** A block of code with its language and a button that copies it. */
export function code(body, language) {
  const take = button(t`Copy`, () => copy(body, take), 's-tool');
  return h('figure.s-code',
    h('figcaption', h('span', language || 'code'), take), h('pre', body));
}

function inline(words) {
  const nodes = [];
  let from = 0;
  for (const found of words.matchAll(INLINE)) {
    nodes.push(words.slice(from, found.index));
    const [whole, , inCode, bold, slanted] = found;
    nodes.push(inCode !== undefined ? h('code', inCode)
      : bold !== undefined ? h('strong', bold) : h('em', slanted));
    from = found.index + whole.length;
  }
  nodes.push(words.slice(from));
  return nodes.filter((node) => node !== '');
}

const MOST_CELLS = 4_000_000;

/** Return [kind, words] pieces that turn `before` into `after`; kind is '=', '-' or '+'. */
export function diff(before, after) {
  const a = split(before), b = split(after);
  const same = (i, j) => a[i].trimEnd() === b[j].trimEnd();
  let head = 0, tail = 0;
  while (head < a.length && head < b.length && same(head, head)) head += 1;
  while (tail < a.length - head && tail < b.length - head
    && same(a.length - 1 - tail, b.length - 1 - tail)) tail += 1;
  const pieces = [];
  const put = (kind, word) => {
    const last = pieces.at(-1);
    if (last?.[0] === kind) last[1] += word; else pieces.push([kind, word]);
  };
  b.slice(0, head).forEach((word) => put('=', word));
  const rows = a.length - head - tail, columns = b.length - head - tail;
  const table = rows * columns <= MOST_CELLS ? lengths(rows, columns, (i, j) => same(head + i, head + j))
    : null;
  let i = 0, j = 0;
  while (i < rows || j < columns) {
    if (table && i < rows && j < columns && same(head + i, head + j)) {
      put('=', b[head + j]); i += 1; j += 1;
    } else if (i < rows && (j === columns || !table || table[i + 1][j] >= table[i][j + 1])) {
      put('-', a[head + i]); i += 1;
    } else {
      put('+', b[head + j]); j += 1;
    }
  }
  b.slice(b.length - tail).forEach((word) => put('=', word));
  return pieces;
}

// Scripts without blanks between words are compared sign by sign.
const SIGN = '[\\p{scx=Han}\\p{scx=Hira}\\p{scx=Kana}\\p{scx=Thai}]';
const WORDS = new RegExp(`\\s*(?:${SIGN}|(?:(?!${SIGN})\\S)+)\\s*`, 'gu');

function split(words) {
  return words.match(WORDS) ?? [];
}

function lengths(rows, columns, same) {
  const table = Array.from({ length: rows + 1 }, () => new Uint16Array(columns + 1));
  for (let i = rows - 1; i >= 0; i -= 1) {
    for (let j = columns - 1; j >= 0; j -= 1) {
      table[i][j] = same(i, j) ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    }
  }
  return table;
}
