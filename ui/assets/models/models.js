// The Models page: every model that can be trained here, what fits on this machine, and the hub's search.
// A download is a queued job, confirmed with all of its facts before. The address holds the search.

import { ago, api, badge, button, bytes, compact, count, dots, h, newest, Page, pairs, query, quiet, redraw, remember,
  send, sureButton, t, text, toast } from '../core/dom.js';
import { askAction, dialog, labelled, matcher, options, searchField, select } from '../core/form.js';
import { trainWith } from '../core/lanes.js';
import { showJobs, subscribe } from '../core/live.js';

const JOBS = new Set(['download', 'extend_model']);
const WAYS = { full: t`Full`, lora: t`LoRA`, qlora: 'QLoRA' };
const WORDS = { fits: t`fits`, tight: t`is tight`, no: t`does not fit`, short: t`is beyond the model’s context` };
const ORIGINS = { starter: t`embedded`, made: t`in this home`, folder: t`folder`, hub: t`downloaded` };
const SORTS = [['downloads', t`Most downloaded`], ['likes', t`Most liked`], ['trending_score', t`Trending`],
  ['last_modified', t`Newest`]];

const ask = (device) => send('/api/do/models', { fits: true, device });
/** The first answer, asked for while gradio still starts. */
let first = document.querySelector('.s-bar a[aria-current][href$="/models"]') ? ask('') : null;

const length = (tokens) => (tokens < 1024 ? String(tokens) : `${tokens / 1024}k`);

export class Models extends Page {
  build() {
    Object.assign(this, { models: [], found: null });
    this.draw();
    this.refresh().then(() => query().get('hub') && this.searchHub());
    const own = (jobs) => jobs.filter(({ kind }) => JOBS.has(kind));
    subscribe({ element: this, onJobs: (jobs) => showJobs(this.jobs, own(jobs)),
      onEnded: (jobs) => { if (own(jobs).length) this.refresh(); } });
  }

  draw() {
    this.search = searchField(t`Search models, or paste an id or the address of a page`, () => {
      remember({ q: this.search.value || null, hub: null });
      this.found = null;
      this.list();
    }, { value: query().get('q') ?? '', onkeydown: ({ key }) => { if (key === 'Enter') this.searchHub(); } });
    this.sort = select(SORTS, 'downloads', () => this.found && this.searchHub(), { label: t`Order of the hub` });
    this.device = select([], '', () => this.refresh(), { label: t`Device`, hidden: true });
    this.notice = h('p.s-notice', { role: 'status', hidden: true });
    this.jobs = h('ol.s-activity', { label: t`Downloads`, testid: 'downloads' });
    this.body = h('div.s-model-groups', { testid: 'models' });
    this.legend = quiet();
    this.append(h('h1.s-hidden', t`Models`), h('div.s-library',
      h('div.s-library-bar', this.search, this.sort,
        button(t`Search the hub`, () => this.searchHub()), this.device,
        h('span.s-actions', button(t`Folders …`, () => this.askFolders()),
          button(t`Token …`, () => this.askToken()))),
      this.notice, this.jobs, this.legend, this.body));
  }

  async refresh() {
    const found = await newest(this, first ?? ask(this.device.value || ''));
    first = null;
    if (!found) return;
    Object.assign(this, found, { device: this.device, machine: found.device });
    this.device.hidden = found.devices.length < 2;
    if (!this.device.length) this.device.append(...options(found.devices));
    this.notice.hidden = !found.offline;
    redraw(this.notice, t`This studio is offline: the hub is not asked for anything. `,
      button(t`Go online`, () => this.goOnline()));
    this.list();
  }

  async goOnline() {
    if (await send('/api/do/offline', { off: true })) await this.refresh();
  }

  // -- the lists --

  list() {
    const matches = matcher(this.search.value);
    const rows = this.models.filter((one) => matches(one.name, one.path, one.what, one.license, one.why_not));
    const here = rows.filter((one) => one.kind !== 'curated'), others = rows.filter((one) => one.kind === 'curated'
      && !this.found?.some(({ id }) => id === one.path));
    const groups = [[t`On this machine`, here.map((one) => this.local(one))],
      [t`To begin with, from the hub`, others.map((one) => this.remote({ ...one, id: one.path }))]];
    if (this.found) groups.unshift([t`Found on the hub`, this.found.map((one) => this.remote(one))]);
    const gone = this.folders?.filter((one) => one.trouble).map((one) => h('p.s-error', one.trouble));
    redraw(this.body, ...(gone ?? []), ...groups.filter(([, inside]) => inside.length).map(([title, inside]) =>
      h('section.s-panel-card.s-model-group', h('header', h('h2', title),
        ...Object.values(WAYS).map((way) => h('span.s-model-head', way, h('small', ' · ', t`tokens`)))),
      h('ol', inside))));
    if (!rows.length && !this.found) {
      this.body.append(h('div.s-welcome', h('p', t`No model here has this name.`),
        button(t`Search the hub`, () => this.searchHub(), 's-primary')));
    }
    if (this.found && !this.found.length) {
      this.body.prepend(quiet(t`No model of the hub with these words can be trained here.`));
    }
    text(this.legend, this.machine ? t`Rows of ${[512, 2048, 8192].map(length).join(', ')} tokens on ${
      this.machine.name} (${bytes(this.machine.bytes)}). Solid fits, outlined is tight or needs gradient
      checkpointing; ≈ is guessed from the number of parameters.` : '');
  }

  row(one, title, meta, actions) {
    return h('li.s-model', { testid: `model-${one.path ?? one.id}` },
      h('div.s-model-name', h('b', { title: one.folder || one.id }, title),
        h('span.s-quiet', meta), one.what && h('span.s-quiet', one.what)),
      one.why_not ? h('p.s-quiet.s-model-why', one.why_not)
        : Object.keys(WAYS).map((way) => this.fit(one, way)),
      h('div.s-actions', actions));
  }

  /** Three lengths as tinted marks, or the memory that the shortest needs. */
  fit(one, way) {
    const fits = one.fits?.ways[way];
    if (!fits) return h('span.s-fit.s-quiet', { 'data-way': WAYS[way] }, '–');
    const about = one.fits.exact ? '' : '≈\u202f';
    if (fits.every(({ state }) => state === 'no' || state === 'short')) {
      return h('span.s-fit.s-quiet', { 'data-way': WAYS[way] }, t`needs ${about}${bytes(fits[0].bytes)}`);
    }
    return h('span.s-fit', { 'data-way': WAYS[way] }, fits.map((each) => h('i', { 'data-state': each.state,
      title: t`${WAYS[way]} on rows of ${count(each.tokens)} tokens ${WORDS[each.state]}${each.bytes
        ? t`: ${about}${bytes(each.bytes)} of ${bytes(this.machine.bytes)}` : ''}` }, length(each.tokens))));
  }

  local(one) {
    const meta = dots(ORIGINS[one.kind], one.parameters && t`${compact(one.parameters)} parameters`, bytes(one.bytes),
      one.context && t`context ${count(one.context)}`, one.license, one.last_used && t`used ${ago(one.last_used)}`,
      one.adapters.length && t`${one.adapters.length} adapter${one.adapters.length > 1 ? 's' : ''}`);
    return this.row(one, one.name, meta, [
      !one.why_not && h('a.s-button', { href: trainWith([`model.path=${one.path}`]) }, t`Train`),
      !one.why_not && button(t`Add tokens …`, () => askAction('models.extend', { fixed: { 'model.path': one.path },
        title: t`Add tokens to ${one.name}`, values: { name: `${one.name} extended` } }), 's-tool',
      { title: t`As a new model; runs on it train their embeddings` }),
      one.kind === 'hub' && button(t`Delete …`, () => this.askDelete(one))]);
  }

  remote(one) {
    const meta = dots(one.parameters && t`${compact(one.parameters)} parameters`,
      one.active && t`${compact(one.active)} active`, one.bytes && bytes(one.bytes),
      one.context && t`context ${count(one.context)}`, one.license, one.gated && t`gated`,
      one.downloads && t`${compact(one.downloads)} downloads`);
    const here = one.here || this.models.some(({ path, kind }) => kind === 'hub' && path === one.id);
    return this.row(one, one.id, meta, [here ? badge('succeeded', t`downloaded`)
      : !one.why_not && button(t`Download …`, () => this.askDownload(one.id))]);
  }

  // -- the hub --

  async searchHub() {
    const words = this.search.value.trim();
    remember({ q: words || null, hub: '1' });
    if (words.includes('://')) return this.askDownload(words);
    const found = await newest(this.body, send('/api/do/models.search', { words, sort: this.sort.value }));
    if (!found || words !== this.search.value.trim()) return null;
    this.found = found;
    return this.list();
  }

  async askDownload(id) {
    let one;
    try { one = await api('/api/do/models.show', { model: id }); } catch (error) {
      toast(error.message, 'error');
      return;
    }
    const left = one.bytes - one.arrived_bytes;
    const steps = one.gated && h('ol.s-steps', h('li', t`Accept its licence on `,
      h('a', { href: one.page, target: '_blank', rel: 'noreferrer' }, t`its page`), '.'),
    h('li', t`Enter a token with read access: “Token …” on this page.`));
    const body = [one.asked !== one.id && quiet(t`${one.asked} was renamed to ${one.id}.`),
      one.why_not && h('p.s-error', one.why_not),
      steps && h('div', h('h3', t`Gated: its owner asks for two steps first`), steps),
      pairs([[t`To download`, t`${bytes(left)} in ${one.files.length} files`],
        one.arrived_bytes && [t`Here already`, bytes(one.arrived_bytes)],
        [t`Free on this disk`, bytes(one.free_bytes)], [t`Licence`, one.license || t`not stated`],
        one.parameters && [t`Parameters`, compact(one.parameters)],
        one.context && [t`Context`, t`${count(one.context)} tokens`],
        [t`Commit`, h('code', one.revision.slice(0, 12))],
        [t`Goes to`, h('span.s-path', one.folder)]]),
      one.fits && h('div.s-model-fits', Object.keys(WAYS).map((way) =>
        h('div', h('span.s-quiet', WAYS[way]), this.fit(one, way)))),
      h('details.s-spec', h('summary', t`Files`), pairs(one.files.map((file) =>
        [file.name, bytes(file.bytes)]))),
      quiet(t`Only configuration, tokenizer and safetensors weights are fetched, into the hub’s own cache. It can be
        paused, and goes on where it was.`)];
    dialog(one.id, h('div.s-dialog-parts', body), t`Download`, one.why_not ? null
      : async () => { await api('/api/do/models.get', { repo: one.id, commit: one.revision }); });
  }

  async askDelete(one) {
    const what = await send('/api/do/models.remove', { model: one.path });
    if (!what) return;
    dialog(t`Delete ${one.name}`, [h('p', t`This frees ${bytes(what.bytes)}. It can be downloaded again.`),
      what.adapters.length > 0 && h('p.s-error', t`${what.adapters.join(', ')}: without their base, these
        adapters cannot be used until it is downloaded again.`)], t`Delete`, async () => {
      await api('/api/do/models.remove', { model: one.path, yes: true });
      toast(t`${one.name} is deleted.`);
      await this.refresh();
    });
  }

  async askToken() {
    const known = await send('/api/do/models.token', {});
    if (!known) return;
    const input = h('input', { type: 'password', autocomplete: 'off', placeholder: 'hf_…' });
    const node = dialog(t`Token of the hub`, [quiet(known.account ? t`The stored token is of ${known.account}.`
      : t`No token is stored. Gated and private models need one with read access.`),
    h('a', { href: known.page, target: '_blank', rel: 'noreferrer' }, t`Make one on the hub`),
    labelled(t`Token`, input, t`Kept where the hub’s own library keeps it; never shown again.`),
    known.account && button(t`Forget it`, async () => {
      await api('/api/do/models.token', { off: true });
      toast(t`The token is forgotten.`);
      node.close();
    })], t`Store`, async () => {
      const kept = await api('/api/do/models.token', { token: input.value });
      toast(t`Stored: the token of ${kept.account}.`);
    });
  }

  askFolders() {
    const list = this.folders.map((one) => h('div.s-folder', h('span.s-path', one.path),
      sureButton(t`Leave out`, t`Sure?`, async () => {
        await api('/api/do/models.folders', { forget: one.path });
        document.querySelector('.s-dialog')?.close();
        this.refresh();
      }, 's-tool')));
    const path = h('input', { placeholder: '/path/to/models', spellcheck: 'false' });
    dialog(t`Folders with models`, [...list, labelled(t`Add a folder`, path,
      t`Searched three levels deep each time; nothing in it is changed.`)], t`Add`, async () => {
      await api('/api/do/models.folders', { add: path.value });
      await this.refresh();
    });
  }
}

/** The hub's card of the System page: the offline switch. */
export function hubCard(card) {
  const body = h('div.s-stack');
  const show = (found) => redraw(body, pairs([[t`Address`, found.endpoint],
    [t`Cache`, h('span.s-path', found.cache)],
    [t`State`, found.offline ? t`offline: nothing is asked` : t`used when something is asked of it`]]),
  h('div.s-actions', button(found.offline ? t`Go online` : t`Go offline`, async () => {
    show(await api('/api/do/offline', found.offline ? { off: true } : { on: true }));
  })));
  send('/api/do/offline', {}).then((found) => found && show(found));
  return card(t`Model hub`, body);
}

customElements.define('studio-models', Models);
