// A document just large enough to build elements without a browser.

class Node {
  constructor(tag) {
    Object.assign(this, { tag, children: [], listeners: {}, dataset: {}, attributes: {}, style: {}, title: '',
      checked: false, hidden: false });
    this.classList = { add() {}, remove() {}, toggle() {} };
  }

  append(...nodes) { this.children.push(...nodes); }

  replaceChildren(...nodes) { this.children = nodes; }

  insertBefore(node) { this.children.push(node); }

  contains() { return false; }

  querySelectorAll() { return []; }

  get firstChild() { return this.children[0]; }

  get lastChild() { return this.children.at(-1); }

  /** All elements below that `wanted` accepts. */
  all(wanted) {
    return this.children.flatMap((one) => (one.children ? [...wanted(one) ? [one] : [], ...one.all(wanted)] : []));
  }

  setAttribute(name, value) { this.attributes[name] = value; }

  toggleAttribute(name, on) { if (on) this.attributes[name] = ''; else delete this.attributes[name]; }

  addEventListener(type, act) { this.listeners[type] = act; }

  getBoundingClientRect() { return { left: 0, top: 0, width: 300, height: 100 }; }

  setPointerCapture() {}

  focus() {}

  get textContent() { return this.children.map((one) => one.textContent ?? String(one)).join(''); }

  set textContent(words) { this.children = [words]; }

  get outline() {
    return `<${this.tag}>${this.children.map((one) => one.outline ?? String(one)).join('')}</${this.tag}>`;
  }
}

Object.assign(globalThis, {
  document: { createElement: (tag) => new Node(tag), addEventListener() {}, querySelector: () => null,
    body: new Node('body'), documentElement: new Node('html') },
  HTMLElement: Node,
  ResizeObserver: class { observe() {} },
  addEventListener() {},
  requestAnimationFrame: () => 1,
  customElements: { define() {} },
  location: { pathname: '/' },
});
