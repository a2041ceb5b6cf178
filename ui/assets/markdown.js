// Markdown of a model as document nodes: paragraphs, headings, lists, quotes, code. Links stay text
// and HTML stays letters, so an answer can show anything and do nothing.

import { button, copy, h } from './dom.js';

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
      nodes.push(h('p', { class: 's-md-head' }, inline(head[2])));
    } else if (ITEM.test(lines[at])) {
      const ordered = /^\s*\d/.test(lines[at]);
      const items = run((line) => ITEM.test(line) && /^\s*\d/.test(line) === ordered);
      nodes.push(h(ordered ? 'ol' : 'ul', ordered ? { start: parseInt(items[0], 10) } : {},
        items.map((line) => h('li', {}, inline(ITEM.exec(line)[1])))));
    } else if (lines[at].startsWith('>')) {
      const quoted = run((line) => line.startsWith('>')).map((line) => line.replace(/^>\s?/, ''));
      nodes.push(h('blockquote', {}, inline(quoted.join('\n'))));
    } else if (!lines[at].trim()) {
      at += 1;
    } else {
      const plain = run((line) => line.trim() && !FENCE.test(line) && !ITEM.test(line)
        && !/^(#{1,4}\s|>)/.test(line));
      nodes.push(h('p', {}, inline(plain.length ? plain.join('\n') : lines[at++])));
    }
  }
  return nodes.flatMap((node) => [node, '\n']);
}

function code(body, language) {
  const take = button('Copy', () => copy(body, take), 's-tool');
  return h('figure', { class: 's-code' },
    h('figcaption', {}, h('span', {}, language || 'code'), take), h('pre', {}, body));
}

function inline(words) {
  const nodes = [];
  let from = 0;
  for (const found of words.matchAll(INLINE)) {
    nodes.push(words.slice(from, found.index));
    const [whole, , inCode, bold, slanted] = found;
    nodes.push(inCode !== undefined ? h('code', {}, inCode)
      : bold !== undefined ? h('strong', {}, bold) : h('em', {}, slanted));
    from = found.index + whole.length;
  }
  nodes.push(words.slice(from));
  return nodes.filter((node) => node !== '');
}
