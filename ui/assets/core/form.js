// Dialogs and form fields.

import { button, h, text } from './dom.js';
import { poke } from './live.js';

/** A modal form; `submit(fields)` returns a promise, whose error is shown and keeps it open. Without
 *  one it only tells something. */
export function dialog(title, body, label, submit) {
  const wrong = h('p', { class: 's-error', role: 'alert', hidden: true });
  const go = h('button', { class: 's-button s-primary', type: 'submit' }, label);
  const node = h('dialog', { class: 's-dialog', 'aria-label': title, onclose: () => node.remove() },
    h('form', { method: 'dialog', onsubmit: async (event) => {
      event.preventDefault();
      go.disabled = true;
      wrong.hidden = true;
      try {
        await submit?.();
        node.close();
        poke();
      } catch (error) {
        text(wrong, error.message);
        wrong.hidden = false;
      }
      go.disabled = false;
    } }, h('h2', {}, title), body, wrong, h('div', { class: 's-actions s-dialog-end' },
      button('Close', () => node.close()), submit && go)));
  // Beside the page's element: gradio's container has resets that would reach it.
  (document.querySelector('studio-adapters') ?? document.body).append(node);
  node.showModal();
  return node;
}

export function labelled(name, input, note = '') {
  return h('label', { class: 's-labelled' }, h('span', {}, name), input,
    note && h('span', { class: 's-quiet' }, note));
}

export function choice(options, value, changed) {
  const node = h('select', { onchange: () => changed?.(node.value) },
    options.map(([key, words]) => h('option', { value: key }, words)));
  if (value !== undefined) node.value = value;
  return node;
}

export function input(value, props = {}) {
  const node = h('input', { type: 'text', ...props });
  node.value = value;
  return node;
}

export const numeric = (value, bounds) => input(value, { type: 'number', ...bounds });

export const options = (choices, chosen) => choices.map(([value, label]) =>
  h('option', { value, selected: value === chosen }, label ?? value));
