// Methods as cards: a picture (input, frozen block, what is trained), what it is for, and its size on the
// chosen model.

import { bytes, compact, h, t, text } from '../core/dom.js';
import { svg } from '../core/take_away.js';

const FIRST = 4; // cards that are always there

/** Pictures: shapes as [tag, attributes], trained ones in colour. `block` is the frozen block, `in` the tokens. */
const TOKENS = [9, 19, 29].map((y) => ['rect', { x: 4, y: y - 3, width: 6, height: 6 }]);
const WIRES = [['path', { d: 'M12 19H26M50 19H68', class: 'wire' }]];
const BLOCK = ['rect', { x: 26, y: 10, width: 24, height: 19, rx: 2, class: 'frozen' }];
const wedge = (y, more = {}) => [['path', { d: `M27 ${y}L36 ${y + 3}V${y + 5}L27 ${y + 8}ZM49 ${y}L40 ${y + 3}V${y + 5}`
  + `L49 ${y + 8}Z`, class: 'trained', ...more }], ['path', { d: `M36 ${y + 4}H40`, class: 'trained wire' }]];
const square = (x, y, size) => ['rect', { x, y, width: size, height: size, rx: 1, class: 'trained' }];
const LOW_RANK = [...wedge(0)];
const PICTURES = {
  delta: LOW_RANK, lora: LOW_RANK,
  qlora: [...LOW_RANK, ...[29, 34, 39, 44].map((x) => ['path', { d: `M${x} 12V27`, class: 'wire' }])],
  loha: [...wedge(0), ...wedge(30)],
  lokr: [square(29, 2, 4), ['path', { d: 'M35 2L39 6M39 2L35 6', class: 'trained wire' }], square(41, 0, 8)],
  vera: [...wedge(0, { class: 'frozen' }), ['path', { d: 'M38 0V8M51 0V8', class: 'trained bar' }]],
  bitfit: [['path', { d: 'M29 26H47', class: 'trained bar' }]],
  norm_tuning: [['path', { d: 'M22 12V26', class: 'trained bar' }]],
  gain: [['circle', { cx: 58, cy: 19, r: 5, class: 'trained' }],
    ['path', { d: 'M56 17L60 21M60 17L56 21', class: 'on' }]],
  transform: [['path', { d: 'M53 12L58 17V21L53 26ZM65 12L60 17V21L65 26Z', class: 'trained' }]],
  keys_values: [square(28, 12, 4), square(28, 17.5, 4), square(28, 23, 4)],
  prompt: [square(13, 6, 6), square(13, 16, 6), square(13, 26, 6)],
  p_tuning: [square(13, 6, 6), square(13, 16, 6), square(13, 26, 6),
    ['path', { d: 'M16 35V38H8', class: 'trained wire' }], ['circle', { cx: 6, cy: 38, r: 2.5, class: 'trained' }]],
  weights: [['rect', { x: 26, y: 10, width: 24, height: 19, rx: 2, class: 'trained' }]],
};

/** The picture of a method; one that is not drawn here has that of its phase. */
export function picture(name, phase) {
  const parts = [...WIRES, ...TOKENS, BLOCK, ...PICTURES[name] ?? PICTURES[phase] ?? []];
  return svg('svg', { viewBox: '0 0 72 42', class: 's-picture', 'aria-hidden': 'true' },
    parts.map(([tag, props]) => svg(tag, props)));
}

export class Methods {
  /** `choose` is called with the name of a method. */
  constructor(methods, choose) {
    this.methods = [...methods];
    // The usual ones first: a full fine-tune is what the others are measured against.
    const rank = ({ name }) => ['lora', 'qlora', 'full', 'ia3'].indexOf(name) + 1 || 99;
    this.methods.sort((a, b) => rank(a) - rank(b));
    this.nodes = new Map(this.methods.map((one) => [one.name, this.card(one, choose)]));
    this.more = h('button.s-tool', { onclick: () => this.unfold(!this.unfolded) });
    this.manual = h('details.s-manual', h('summary', t`How it works`), h('div'));
    this.element = h('div.s-stack', h('div.s-methods', { role: 'radiogroup',
      label: t`Method` }, [...this.nodes.values()].map(({ label }) => label)),
    h('div.s-row-between', this.manual, this.more));
    this.unfold(false);
  }

  card({ name, title, phase, use }, choose) {
    const size = h('span.s-size');
    const input = h('input', { type: 'radio', name: 'method', value: name, onchange: () => choose(name) });
    const label = h('label.s-method', { title: use }, input, picture(name, phase), h('b', title), size,
      h('span.s-use', use.split(/[.;]( |$)|[。；]/)[0].replaceAll('`', '')));
    return { label, input, size };
  }

  unfold(on) {
    this.unfolded = on;
    [...this.nodes.values()].forEach(({ label, input }, at) => {
      label.hidden = !on && at >= FIRST && !input.checked;
    });
    text(this.more, on ? t`Fewer methods` : t`All ${this.nodes.size} methods`);
  }

  show(method) {
    const { input } = this.nodes.get(method);
    if (input.checked && this.shown === method) return;
    input.checked = true;
    this.shown = method;
    this.unfold(this.unfolded);
    this.manual.lastChild.replaceChildren(...manual(this.methods.find((one) => one.name === method)));
  }

  /** Show how many parameters each trains on the model, and the size of its file. */
  size(sizes) {
    for (const [name, { label, input, size }] of this.nodes) {
      const known = sizes[name];
      text(size, !known ? '' : known.parameters ? `${compact(known.parameters)} · ${bytes(known.bytes)}`
        : t`not for this model: it has no biases`);
      input.disabled = known?.parameters === 0 && !input.checked;
      label.classList.toggle('s-off', input.disabled);
    }
  }
}

/** A manual, first what the method is for. */
const manual = (one) => [one.use, ...one.manual.split('\n\n')].map((part) => h('p', part.split('`').map(
  (piece, at) => (at % 2 ? h('code', piece) : piece))));
