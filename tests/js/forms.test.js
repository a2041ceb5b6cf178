import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { askAction } = await import('../../ui/assets/core/form.js');
const { combinations, localTime } = await import('../../ui/assets/runs/queue.js');
const { readPairs, writePairs } = await import('../../ui/assets/data/import.js');

test('pairs are read as they were written', () => {
  const pairs = { prompt: '{title}: {body}', system: 'Be brief.\nUse a = b.' };
  assert.equal(writePairs(pairs), 'prompt = {title}: {body}\nsystem = Be brief.\\nUse a = b.');
  assert.deepEqual(readPairs(writePairs(pairs)), pairs);
  assert.deepEqual(readPairs('half\n\n a=b '), { half: '', a: 'b' });
});

test('a sweep runs every combination of its lines', () => {
  assert.equal(combinations(['method.r = 4, 8, 16', 'seed=0,1']), 6);
  assert.equal(combinations([]), 0);
});

test('a time is written as the clock shows it then, not with the offset of today', () => {
  process.env.TZ = 'Europe/Berlin';
  assert.equal(localTime(Date.parse('2026-07-01T10:30Z') / 1000), '2026-07-01 12:30');
  assert.equal(localTime(Date.parse('2026-12-01T10:30Z') / 1000), '2026-12-01 11:30');
});

test('the button of a dialog has the title of its action, whatever name is in the heading', async () => {
  HTMLElement.prototype.showModal = () => {};
  globalThis.fetch = async () => ({ ok: true, json: async () => [{ name: 'sweep', title: '排入参数扫描', help: '',
    fields: [] }] });
  const button = async (settings) => (await askAction('sweep', settings)).all((one) => one.attributes.type === 'submit'
    || one.type === 'submit')[0].textContent;
  assert.equal(await button({ title: '由 my first run 排入参数扫描' }), '排入参数扫描');
  assert.equal(await button({ label: '使用' }), '使用');
});
