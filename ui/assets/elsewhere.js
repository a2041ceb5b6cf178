// How other programs on this machine reach the lanes of the page: by name, over the chat host's
// OpenAI-compatible address. Its key is shown by a command of this user, never by a page.

import { dialog } from './adapters_dialogs.js';
import { h } from './dom.js';
import { snippet } from './views.js';

/** What an OpenAI client calls a lane: starter+pirate:0.5+terse */
export const clientName = ({ model, stack }) => [model, ...stack.map(({ name, weight }) =>
  (weight === 1 ? name : `${name}:${weight}`))].join('+');

export function askElsewhere(lanes) {
  const names = lanes.map(clientName);
  dialog('Use these lanes elsewhere', [h('p', { class: 's-quiet' }, 'Editors, scripts and other chat programs on '
    + 'this machine can talk to any lane over an OpenAI-compatible address. This command prints the address '
    + 'and its key:'), snippet('In a terminal', 'studio endpoint'),
  snippet('Names of these lanes, as “model”', names.join('\n'))]);
}
