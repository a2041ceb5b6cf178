// The composer: one prompt for all lanes, and the settings all lanes share. Enter sends, Shift+Enter
// breaks the line, Escape stops.

import { button, h } from './dom.js';

const KEY = 'studio.sampling';
const SETTINGS = [
  ['max_new_tokens', 'Longest answer', 'tokens', { min: 1, max: 8192, step: 1 }, 128],
  ['temperature', 'Temperature', '0 takes the likeliest', { min: 0, max: 5, step: 0.05 }, 0],
  ['top_p', 'Top p', 'share of likelihood kept', { min: 0, max: 1, step: 0.01 }, 1],
  ['top_k', 'Top k', '0 keeps all', { min: 0, max: 1000, step: 1 }, 0],
  ['repetition_penalty', 'Repetition penalty', '1 is none', { min: 0.5, max: 3, step: 0.01 }, 1],
  ['seed', 'Seed', 'the same in every lane', { min: 0, max: 2 ** 31 - 1, step: 1 }, 0],
];

export class Composer {
  /** `doors`: send(prompt), stop(), again(), fresh(), add(). */
  constructor(doors) {
    this.doors = doors;
    const kept = this.kept();
    this.prompt = h('textarea', { rows: 1, placeholder: 'Ask all lanes …', 'aria-label': 'Prompt',
      'data-testid': 'prompt', oninput: () => this.grow(), onkeydown: (event) => this.key(event) });
    this.send = button('Send', () => this.submit(), 's-primary', { 'data-testid': 'send' });
    this.stop = button('Stop', doors.stop, 's-danger', { hidden: true, 'data-testid': 'stop' });
    this.again = button('Ask again', doors.again, '', { hidden: true,
      title: 'Answer the last prompt again, with the weights as they are now' });
    this.fresh = button('New chat', doors.fresh, '', { hidden: true });
    this.add = button('+ Lane', doors.add, '', { title: 'Add a lane', 'data-testid': 'add-lane' });
    this.system = h('textarea', { rows: 2, placeholder: 'None', onchange: () => this.keep() });
    this.system.value = kept.system ?? '';
    this.fields = SETTINGS.map(([name, title, note, bounds, usual]) => {
      const input = h('input', { type: 'number', ...bounds, onchange: () => this.keep() });
      input.value = kept[name] ?? usual;
      return { name, usual, input, title, note };
    });
    this.panel = h('div', { class: 's-sampling', hidden: true, id: 's-sampling' },
      h('label', { class: 's-wide-label' }, h('span', {}, 'System prompt'), this.system),
      this.fields.map(({ title, note, input }) => h('label', { title: note },
        h('span', {}, title), input)));
    this.gear = button('Settings', () => this.toggle(), '', { 'aria-expanded': 'false',
      'aria-controls': 's-sampling' });
    this.element = h('div', { class: 's-composer' }, this.panel,
      h('div', { class: 's-composer-row' }, this.prompt, this.send, this.stop, this.again,
        this.add, this.gear, this.fresh));
  }

  key(event) {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.submit();
    }
    if (event.key === 'Escape') this.doors.stop();
  }

  submit() {
    const prompt = this.prompt.value.trim();
    if (!prompt || this.isBusy) return;
    this.prompt.value = '';
    this.grow();
    this.doors.send(prompt);
  }

  grow() {
    this.prompt.style.height = 'auto';
    this.prompt.style.height = `${Math.min(200, this.prompt.scrollHeight + 2)}px`;
  }

  toggle() {
    this.panel.hidden = !this.panel.hidden;
    this.gear.setAttribute('aria-expanded', String(!this.panel.hidden));
  }

  busy(on) {
    this.isBusy = on;
    this.send.hidden = on;
    this.stop.hidden = !on;
    this.again.disabled = on;
    this.fresh.disabled = on;
    if (!on) this.focus();
  }

  ready(started) {
    this.again.hidden = !started;
    this.fresh.hidden = !started;
  }

  more(possible) {
    this.add.hidden = !possible;
  }

  focus() {
    this.prompt.focus({ preventScroll: true });
  }

  settings() {
    const sampling = {};
    for (const { name, usual, input } of this.fields) {
      const value = input.valueAsNumber;
      sampling[name] = Number.isFinite(value) ? value : usual;
    }
    return { system: this.system.value.trim(), sampling };
  }

  kept() {
    try { return JSON.parse(localStorage.getItem(KEY)) ?? {}; } catch { return {}; }
  }

  keep() {
    const { system, sampling } = this.settings();
    try { localStorage.setItem(KEY, JSON.stringify({ system, ...sampling })); } catch { /* private */ }
  }
}
