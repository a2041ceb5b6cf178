import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { Import, Mapping } = await import('../../ui/assets/data/import.js');

const settled = () => new Promise((done) => { setTimeout(done); });
const mapping = { format: 'text', columns: {}, templates: {}, constants: {}, roles: {} };
const parts = ['train', 'test'].map((split) => ({ subset: 'main', split }));

/** An import whose requests wait: `ask(path)` begins one, and returns how to answer or refuse it. */
function opened() {
  const asked = [];
  const one = new Import({ demos: [], models: [], datasets: [], formats: { text: { needed: [], optional: [] } } });
  globalThis.fetch = async (path) => {
    if (path === '/api/actions') return { ok: true, json: async () => [{ name: 'data.import', fields: [] }] };
    return new Promise((done) => { asked.push((ok, said) => {
      done({ ok, json: async () => said });
      return settled();
    }); });
  };
  const last = () => {
    const end = asked.at(-1);
    return { answer: (reason, hub) => end(true, { reason, hub, mapping, rows: [], same_name: [] }),
      found: (names) => end(true, names.map((id) => ({ id }))),
      refuse: (words) => end(false, { error: { text: words } }) };
  };
  const ask = (path, how = 'look') => { one.path.value = path; one[how](); return last(); };
  const boxes = () => one.looked.all(({ attributes }) => attributes.type === 'radio');
  const choose = (i) => {
    boxes().forEach((box, at) => { box.checked = at === i; });
    boxes()[i].listeners.change();
    return last();
  };
  return { one, ask, choose, boxes, shown: () => one.looked.textContent };
}

test('only the newest of what was asked is shown, and so is its error', async () => {
  const { one, ask, shown } = opened();
  const [old, search, news] = [ask('old'), ask('words', 'searchHub'), ask('new')];
  await news.answer('the new one');
  await old.refuse('the old is gone');
  await search.found(['org/sums']);
  assert.match(shown(), /the new one/);
  assert.doesNotMatch(shown(), /org\/sums/);
  assert.equal(one.error.hidden, true);

  const read = ask('read');
  one.path.value = 'reads';
  await read.answer('not asked for any more');
  assert.equal(shown(), '');
  assert.equal(one.going.hidden, true, 'it is not being read any more');
});

test('a part that is streamed locks the panel of the last one, and a refusal gives it back', async () => {
  const { one, ask, choose, boxes, shown } = opened();
  await ask('org/sums').answer('train rows', { id: 'org/sums', part: parts[0], parts });
  const locked = () => one.looked.children.map((node) => Boolean(node.inert));
  const chosen = () => boxes().map((box) => box.checked);
  const [test1, test2] = [choose(1), choose(1)];
  assert.deepEqual([...new Set(locked().slice(1))], [true]);
  await test1.refuse('an old refusal');
  assert.deepEqual([one.error.hidden, locked()[1]], [true, true]);
  await test2.refuse('the hub is silent');
  assert.equal(one.error.textContent, 'the hub is silent');
  assert.deepEqual([locked().includes(true), chosen()], [false, [true, false]]);
  await choose(1).answer('test rows', null);
  assert.match(shown(), /test rows/);
  assert.deepEqual([locked().includes(true), boxes().length, chosen()], [false, 2, [false, true]]);
});

test('columns keep the order of the file, whatever part they play', () => {
  const page = { datasets: [], formats: { text: { needed: ['text'], optional: [] } } };
  const found = { mapping: { ...mapping, columns: { text: 'b' } }, columns: { a: '1', b: '2' }, rows: [] };
  const { controls } = new Mapping(page, 'file', { found });
  const cells = controls.all(({ tag }) => tag === 'td').map((one) => one.textContent);
  assert.ok(cells.indexOf('a') < cells.indexOf('b'), cells.join());
});

test('only a file uploaded in this tab is read at once, and a taken name is told as taken', async () => {
  globalThis.addEventListener ??= () => {};
  globalThis.sessionStorage = { getItem: () => 'home/mine.csv' };
  const { Data } = await import('../../ui/assets/data/data.js');
  for (const [path, read] of [['home/mine.csv', true], ['//host/share', false]]) {
    globalThis.location = new URL(`http://x/data?import=${path}`);
    const seen = [], importing = { path: {}, open: (...given) => seen.push(given) };
    const page = Object.assign(Object.create(Data.prototype), { draw() {}, refresh: async () => {},
      open: async () => {}, take() {}, importing });
    page.build();
    await settled();
    assert.deepEqual([seen.length, importing.path.value], read ? [1, undefined] : [0, path]);
  }
  const said = [];
  document.hidden = true; // nothing is polled
  document.querySelector = () => ({ children: [], append: (node) => said.push(node.firstChild.textContent) });
  globalThis.setTimeout = () => {}; // nor is a toast taken away
  const page = Object.assign(Object.create(Data.prototype), { refresh: async () => {}, open() {},
    await: (_, then) => then({ asked: 'foo', name: 'foo-2' }) });
  page.openResult({}, null);
  assert.deepEqual(said, ['Its name is foo-2: foo was taken.']);
});

test('a part of a row that must be there says so in a word', () => {
  const formats = { instruction: { needed: ['prompt'], optional: ['system'] } };
  const page = new Mapping({ formats }, 'rows.csv');
  page.mapping = { format: 'instruction', columns: {}, templates: {}, constants: {}, roles: {} };
  page.columns = { question: {} };
  const words = page.columnTable().textContent;
  assert.match(words, /prompt \(needed\)/);
  assert.doesNotMatch(words, /\*/);
});
