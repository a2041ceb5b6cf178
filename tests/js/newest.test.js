import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { newest } = await import('../../ui/assets/core/dom.js');
const { outcome } = await import('../../ui/assets/core/outcome.js');
const { Adapters } = await import('../../ui/assets/adapters/adapters.js');
const { Passport } = await import('../../ui/assets/adapters/passport.js');
const { withSettings } = await import('../../ui/assets/compare/conversation.js');

test('only the newest question of an owner is answered, whatever comes late', async () => {
  const owner = {}, ends = [];
  const ask = () => newest(owner, new Promise((...both) => { ends.push(both); }));
  const [first, second, third] = [ask(), ask(), ask()];
  const other = newest({}, Promise.resolve('other'));
  ends[2][0]('third');
  ends[0][0]('first');
  ends[1][1](new Error('late refusal'));
  assert.deepEqual(await Promise.all([first, second, third, other]), [undefined, undefined, 'third', 'other']);
  await assert.rejects(newest(owner, Promise.reject(new Error('refused'))), /refused/);
});

test('equal lanes of an address stay lanes of their own, each with settings that were saved', () => {
  const lane = (more = {}) => ({ model: 'starter', stack: [], ...more });
  const saved = [lane({ own: 1 }), lane({ own: 2 })];
  const found = withSettings([lane(), lane(), lane()], saved);
  assert.deepEqual(found.map(({ own }) => own), [1, 2, undefined]);
  assert.equal(new Set(found).size, 3);
});

/** Answer requests by hand, in any order: the function returned answers the request of this number. */
function answering() {
  const asked = [];
  globalThis.fetch = () => new Promise((done) => { asked.push(done); });
  return (number, body) => asked[number]({ ok: true, status: 200, json: async () => body });
}

test('an outcome that arrives late replaces neither that of another job nor an empty place', async () => {
  const answer = answering(), place = document.createElement('div');
  const job = (id) => ({ id, kind: 'push', state: 'succeeded' });
  const [first, second] = [outcome(job(1), place), outcome(job(2), place)];
  answer(1, { outcome: { address: 'two' } });
  await second;
  answer(0, { outcome: { address: 'one' } });
  await first;
  assert.match(place.textContent, /two$/);
  const third = outcome(job(3), place);
  await outcome({ id: 4, kind: 'push', state: 'failed', error: { text: 'refused' } }, place);
  answer(2, { outcome: { address: 'three' } });
  await third;
  assert.equal(place.textContent, 'refused');
  const fourth = outcome(job(4), place);
  place.replaceChildren();
  await newest(place); // a job without an outcome is shown
  answer(3, { outcome: { address: 'four' } });
  await fourth;
  assert.equal(place.textContent, '');
});

test('a list of adapters that arrives late does not replace a newer one', async () => {
  const answer = answering(), page = { list() {} };
  const both = [1, 2].map(() => Adapters.prototype.refresh.call(page));
  answer(1, { adapters: ['new'] });
  answer(0, { adapters: ['old'] });
  await Promise.all(both);
  assert.deepEqual(page.adapters, ['new']);
});

test('a passport is not drawn again while a field of it is typed in, and keeps its charts', async ({ mock }) => {
  mock.timers.enable({ apis: ['setTimeout'] }); // no polling
  const adapter = { id: 'run-1', name: 'one', path: '/one', base: 'starter', run: 1, tags: [], parents: [],
    blind_test: { lanes: ['starter', 'starter~one'] }, passport: {}, formats: [] };
  const passport = new Passport({ chosen: 'run-1', isConnected: true });
  passport.element.focus = () => {};
  let size = 0;
  const show = () => {
    globalThis.fetch = async () => ({ ok: true, status: 200, json: async () => ({ ...adapter, size_bytes: ++size }) });
    return passport.show('run-1');
  };
  await show();
  const { board, element: { children: first } } = passport;
  const typed = { localName: 'input', value: 'half', defaultValue: 'one' };
  passport.element.contains = (node) => node === typed;
  document.activeElement = typed;
  await show();
  assert.equal(passport.element.children, first);
  typed.value = 'one'; // Escape
  document.activeElement = null;
  await typed.onblur();
  assert.notEqual(passport.element.children, first);
  assert.equal(passport.board, board);
});
