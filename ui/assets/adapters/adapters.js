// The Adapters page: a card per adapter, a passport for the selected one, and actions on several. The
// address holds the selection (?adapter=run-3). Long work is a queued job; its progress and outcome
// are shown here and on the Runs page.

import { ago, api, badge, button, bytes, changed, dots, figures, go, h, keyed, newest, number, Page, query, redraw,
  remember, send, short, sureButton, t, text, toast, word } from '../core/dom.js';
import { box, list, matcher, searchField, select, showDeleted } from '../core/form.js';
import { compareAdapters } from '../core/lanes.js';
import { actOn, isLive, subscribe } from '../core/live.js';
import { KINDS, outcome } from '../core/outcome.js';
import { askBakeoff, askEvaluate, askExport, askImport, askMerge, askMix, unmergeable } from './actions.js';
import { Results } from './bakeoff.js';
import { ENDED, ending, Passport } from './passport.js';

const ORDERS = { [t`Newest first`]: (a, b) => (b.created ?? 0) - (a.created ?? 0),
  [t`By name`]: (a, b) => a.name.localeCompare(b.name),
  [t`Lowest held-out loss`]: (a, b, lowest) => a.loss.localeCompare(b.loss) || (lowest.get(a.alike) ?? 1e9)
    - (lowest.get(b.alike) ?? 1e9) || a.alike - b.alike || (a.eval_loss ?? 1e9) - (b.eval_loss ?? 1e9),
  [t`Largest first`]: (a, b) => b.size_bytes - a.size_bytes };

export class Adapters extends Page {
  build() {
    Object.assign(this, { adapters: [], trash: [], models: [],
      away: new Set(JSON.parse(sessionStorage.getItem('studio.away') ?? '[]')) });
    this.chosen = query().get('adapter');
    this.contest = query().get('bakeoff');
    this.picked = new Set();
    this.draw();
    this.refresh().then(() => {
      const linked = this.adapters.find((one) => one.id === this.chosen)
        ?? this.adapters.find((one) => one.name === this.chosen);
      if (linked) this.open(linked.id);
      else if (this.chosen) {
        toast(t`There is no adapter “${this.chosen}”: it was renamed or deleted.`, 'error');
        this.close();
      }
      if (this.contest) this.results.show(this.contest);
    });
    subscribe({ element: this, onJobs: (jobs) => this.take(jobs),
      onEnded: () => this.refresh().then(() => this.chosen && this.passport.show(this.chosen)) });
  }

  draw() {
    this.search = searchField(t`Search adapters, tags, bases`, () => this.list());
    this.order = select(Object.keys(ORDERS), '', () => this.list(), { label: t`Order` });
    this.merge = button(t`Merge …`, () => askMerge(this, this.selection()));
    this.mix = button(t`Mix …`, () => askMix(this, this.selection()));
    this.give = button(t`Export …`, () => askExport(this, this.selection()));
    this.together = button(t`Compare`, () => { go(compareAdapters(this.selection())); });
    this.count = h('span.s-quiet');
    this.jobs = h('ol.s-activity', { label: t`Jobs`, testid: 'activity' });
    this.cards = h('ol.s-cards', { testid: 'adapters' });
    this.bin = h('details.s-bin', { hidden: true });
    this.passport = new Passport(this);
    this.results = new Results(() => this.results.hide());
    this.welcome = h('div.s-welcome', { hidden: true }, h('h2', t`No adapters yet`),
      h('p', t`Every training run adds its adapter here. Adapters from PEFT or AdapterHub can be imported from a
        folder or a hub id.`),
      h('a.s-button.s-primary', { href: '/' }, t`Train the first adapter`));
    this.append(h('h1.s-hidden', t`Adapters`), h('div.s-library',
      h('div.s-library-bar', this.search, this.order,
        h('span.s-actions', this.together, this.merge, this.mix, this.give,
          button(t`Evaluate …`, () => askEvaluate(this, this.selection())),
          button(t`Import …`, () => askImport(this)),
          button(t`Bake-off …`, () => askBakeoff({ models: this.models }))), this.count),
      this.jobs, this.results.element, this.cards, this.welcome, this.bin),
    this.passport.element);
  }

  async refresh() {
    Object.assign(this, await newest(this, send('/api/adapters')));
    this.list();
  }

  selection() {
    return this.adapters.filter((one) => this.picked.has(one.id));
  }

  list() {
    const matches = matcher(this.search.value);
    const lowest = new Map(); // of those that were measured alike; others cannot be compared
    for (const { alike, eval_loss: loss } of this.adapters) {
      if (loss != null) lowest.set(alike, Math.min(loss, lowest.get(alike) ?? loss));
    }
    const shown = this.adapters.filter((one) => matches(one.name, one.method_title, one.base, one.data,
      ending(one) ?? '', ...one.tags)).sort((a, b) => ORDERS[this.order.value](a, b, lowest));
    const known = new Set(this.adapters.map((one) => one.id));
    for (const id of this.picked) if (!known.has(id)) this.picked.delete(id);
    keyed(this.cards, shown, (one) => one.id, (one) => this.card(one), (node, one) =>
      this.fill(node, one));
    this.welcome.hidden = this.adapters.length > 0;
    this.chose();
    showDeleted(this.bin, this.trash, (token) => this.undo(token));
  }

  chose() {
    const picked = this.selection();
    const small = picked.filter((one) => !one.is_model);
    this.give.disabled = !picked.length || (picked.length > 1 && small.length < picked.length);
    const why = small.length < picked.length ? t`A fully fine-tuned model is not an adapter.` : unmergeable(small);
    this.merge.disabled = !small.length || Boolean(why);
    this.mix.disabled = this.merge.disabled || !small.every((one) => one.is_low_rank);
    this.mix.title = this.mix.disabled && !this.merge.disabled
      ? t`Only adapters of low rank, such as LoRA, can be mixed.` : '';
    const many = picked.length >= this.max_lanes; // one is for the base
    this.together.disabled = !picked.length || many;
    text(this.count, picked.length ? dots(t`${picked.length} selected`, why,
      many && t`Compare takes up to ${this.max_lanes - 1} adapters.`)
      : this.adapters.length ? t`Select adapters to compare, merge or mix them.` : '');
  }

  card(one) {
    const tick = box({ label: t`Choose ${one.name}`,
      onchange: (event) => { this.picked[event.target.checked ? 'add' : 'delete'](one.id); this.chose(); } });
    return h('li.s-adapter', { testid: `adapter-${one.id}` }, h('header', tick,
      h('button.s-adapter-name', { onclick: () => this.open(one.id) }),
      h('span')), h('p.s-quiet.s-adapter-what'), h('div'),
    h('footer', h('span.s-tags'), h('span.s-actions')));
  }

  fill(node, one) {
    node.toggleAttribute('data-focus', one.id === this.chosen);
    node.querySelector('input').checked = this.picked.has(one.id);
    if (!changed(node, JSON.stringify(one))) return;
    const [head, what, losses, foot] = node.children;
    text(head.children[1], one.name);
    redraw(head.lastChild, badge(ENDED[one.ended] ?? 'queued', word(ending(one)) || t`unknown`));
    text(what, dots(one.method_title, one.loss, short(one.base) || t`unknown base`, short(one.data),
      one.parents.length && t`from ${one.parents.join(', ')}`));
    redraw(losses, figures([[t`Final loss`, number(one.last_loss)], [t`Held-out`, number(one.eval_loss)],
      [t`Best held-out`, number(one.best_eval_loss)], [t`Size`, bytes(one.size_bytes)]], ''));
    redraw(foot.firstChild, h('span.s-quiet', ago(one.created)),
      ...one.tags.map((tag) => h('button.s-tag', { title: t`Show only these`,
        onclick: () => { this.search.value = tag; this.list(); } }, tag)));
    redraw(foot.lastChild,
      h('a.s-button', { href: compareAdapters([one]) }, t`Compare`),
      button(t`Passport`, () => this.open(one.id)));
  }

  async open(id) {
    this.chosen = id;
    this.list();
    await this.passport.show(id);
    if (this.chosen === id) remember({ adapter: id });
  }

  /** Give the focus to the card of the chosen adapter. */
  focus() {
    this.cards.querySelector(`[data-testid="adapter-${CSS.escape(this.chosen ?? '')}"] .s-adapter-name`)?.focus();
  }

  close() {
    this.chosen = null;
    remember({ adapter: null });
    this.list();
  }

  // -- one adapter --

  async rename(one, name) {
    const done = await send('/api/do/adapters.rename', { adapter: one.id, name });
    if (!done) return false;
    if (this.picked.delete(one.id)) this.picked.add(done.id);
    one.id = done.id; // the passport that is still shown acts on the new name at once
    this.chosen = done.id;
    await this.refresh();
    this.open(done.id);
    return true;
  }

  async tag(one, words) {
    if (!await send('/api/do/adapters.tag', { adapter: one.id, tags: list(words) })) return;
    await this.refresh();
    this.open(one.id);
  }

  async remove(one) {
    await api('/api/do/adapters.delete', { adapter: one.id });
    this.passport.hide();
    this.bin.open = true;
    await this.refresh();
  }

  async undo(token) {
    const back = await api('/api/do/adapters.undo', { adapter: token });
    await this.refresh();
    this.open(back.id);
  }

  // -- jobs --

  take(jobs) {
    const ours = jobs.filter((job) => job.kind in KINDS);
    // A picture that is done is in its passport and needs no line here.
    const recent = (job) => isLive(job) || (!this.away.has(job.id) && Date.now() / 1000 - (job.finished ?? 0) < 900
      && !(job.kind === 'picture' && job.state === 'succeeded'));
    keyed(this.jobs, ours.filter(recent).slice(0, 6), (job) => job.id, (job) => h('li',
      { testid: `job-${job.id}` }), (node, job) => this.job(node, job));
    this.results.take(jobs);
  }

  putAway(id, node) {
    sessionStorage.setItem('studio.away', JSON.stringify([...this.away.add(id)]));
    node.remove();
  }

  job(node, job) {
    if (!changed(node, `${job.state} ${job.phase} ${job.error?.text}`)) return;
    const result = h('div');
    redraw(node, badge(job.state), job.name.startsWith(KINDS[job.kind].toLowerCase()) ? ''
      : h('b', `${KINDS[job.kind]} `),
      h('a', { href: `/runs?run=${job.id}` }, job.name),
      h('span.s-quiet', isLive(job) && job.phase),
      isLive(job) ? sureButton(t`Cancel`, t`Really cancel?`, () => actOn(job.id, 'cancel'), 's-tool')
        : button('×', () => this.putAway(job.id, node), 's-tool', { label: t`Put ${job.name} away` }),
      result);
    if (!isLive(job)) outcome(job, result);
  }
}

customElements.define('studio-adapters', Adapters);
