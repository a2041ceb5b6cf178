import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { askAction, weighted } = await import('../../ui/assets/core/form.js');
const { combinations, instant, localTime, planNext, planSchedule } = await import('../../ui/assets/runs/queue.js');
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

const drawn = (name, type, usual) => ({ name, title: name, type, choices: [], when: {}, default: usual });
const ACTIONS = [{ name: 'schedule', title: 'Schedule', help: '', fields: [drawn('at', 'text', '')] },
  { name: 'sweep', title: '排入参数扫描', help: '', fields: [] }, { name: 'split', title: 'Split', help: '',
    fields: ['number', 'integer'].map((type) => drawn(type, type, 1)) }];

test('a time is of the clock where it was typed, and is sent only if it was changed', async () => {
  process.env.TZ = 'Asia/Shanghai';
  const now = Date.parse('2026-12-01T12:00+08:00');
  for (const [words, sent] of [['02:30', '2026-12-01T18:30:00.000Z'], ['13:00', '2026-12-01T05:00:00.000Z'],
    ['9:05', '2026-12-02T01:05:00.000Z'], ['2027-01-31 02:30', '2027-01-30T18:30:00.000Z'],
    ['2027-01-31', '2027-01-30T16:00:00.000Z'], ['+2h', '+2h'], ['', ''], ['25:00', '25:00'],
    ['2027-13-01', '2027-13-01'], ['2027-02-31', '2027-02-31'], ['2027-01-31 02:30+01:00', '2027-01-31 02:30+01:00']]) {
    assert.equal(instant(words, now), sent, words);
  }
  assert.equal(instant('2027-01-31', now, 1), '2027-01-31T16:00:00.000Z', 'the end of that day');
  assert.equal(instant('2027-01-31 02:30', now, 1), '2027-01-30T18:30:00.000Z');
  const sent = [], job = { id: 1, needs: [], start_after: Date.parse('2999-12-01T18:30Z') / 1000 };
  HTMLElement.prototype.showModal = () => {};
  HTMLElement.prototype.close = () => {};
  document.hidden = true; // nothing is polled
  globalThis.fetch = async (path, { body } = {}) => {
    if (body) sent.push(JSON.parse(body).at);
    return { ok: true, json: async () => ACTIONS };
  };
  for (const change of [(words) => words, () => '', () => '2999-12-02 03:30']) {
    const node = await planSchedule(job, []), [input] = node.all((one) => one.attributes.name === 'at');
    input.value = change(input.value);
    await node.firstChild.listeners.submit({ preventDefault() {} });
  }
  assert.deepEqual(sent, [undefined, '', '2999-12-01T19:30:00.000Z']);
});

test('a next stage has the datasets of the Train page to choose from', async () => {
  const data = { ...drawn('data', 'text'), required: true }, path = { name: 'data.path', title: 'Dataset', type: 'text',
    words: {}, choices: [], default: 'own' };
  const choices = { 'data.path': [['own', 'own'], ['prefs', 'prefs']] };
  const answers = { '/api/train/form': { fields: [path], choices } };
  ACTIONS.push({ name: 'then', title: 'Then', help: '', fields: [data] });
  globalThis.fetch = async (address) => ({ ok: true, json: async () => answers[address] ?? ACTIONS });
  const node = await planNext({ id: 1, name: 'first', data: 'own' });
  assert.match(node.outline, /<option>own<\/option><option>prefs<\/option>/);
});

test('the button of a dialog has the title of its action, whatever name is in the heading', async () => {
  const button = async (settings) => (await askAction('sweep', settings)).all((one) => one.attributes.type === 'submit'
    || one.type === 'submit')[0].textContent;
  assert.equal(await button({ title: '由 my first run 排入参数扫描' }), '排入参数扫描');
  assert.equal(await button({ label: '使用' }), '使用');
});

test('a number may have any decimals, and the weight of a dataset any size', async () => {
  const one = [{ name: 'a', path: 'a' }], isNumber = ({ attributes }) => attributes.type === 'number';
  const [stack, mix] = [undefined, { min: 0 }].map((bounds) =>
    weighted([], one, 'A', 'B', bounds).element.all(isNumber)[0].attributes);
  assert.deepEqual([stack.min, stack.max, stack.step], [-10, 10, 'any']);
  assert.deepEqual([mix.min, mix.max, mix.step], [0, undefined, 'any']);
  const inputs = (await askAction('split')).all(isNumber);
  assert.deepEqual(inputs.map(({ attributes }) => attributes.step), ['any', 1]);
});
