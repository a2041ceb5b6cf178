// What Compare shows before its first turn: a sentence, and prompts to begin with.

import { button, h } from './dom.js';

export function welcome(page) {
  const tuned = page.talk.lanes.some((lane) => lane.stack.length);
  return h('div', { class: 's-welcome' },
    h('h2', {}, 'One prompt, every lane answers'),
    h('p', {}, tuned ? 'Same prompt, same seed, side by side: what you see is what the adapter changed.'
      : 'Only the base is here so far. Train an adapter, or add a lane, to see a difference.'),
    h('div', { class: 's-prompts' }, page.choices.prompts.slice(0, 6).map((prompt) =>
      button(prompt, () => page.send(prompt), 's-chip'))),
    tuned ? '' : h('a', { class: 's-button', href: '/' }, 'Train an adapter'));
}
