// Train: a sweep from the form as it stands, instead of one run. The form speaks through its
// address state ("studio-form").

import { button, query } from './dom.js';
import { planSweep } from './plan.js';

let set = null;
document.addEventListener('studio-form', (event) => { set = event.detail; });

export class Sweep extends HTMLElement {
  connectedCallback() {
    if (this.children.length) return;
    this.append(button('Sweep …', () => planSweep(null, set ?? query().getAll('set')), 's-tool',
      { title: 'Train several values of some fields, as a group' }));
  }
}
