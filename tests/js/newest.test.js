import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { newest } = await import('../../ui/assets/core/dom.js');
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
