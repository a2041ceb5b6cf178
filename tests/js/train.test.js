import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { pickedDevices, Setting, written } = await import('../../ui/assets/train/settings.js');
const { Preflight } = await import('../../ui/assets/train/preflight.js');
const { picture } = await import('../../ui/assets/train/methods.js');
const { isOld } = await import('../../ui/assets/compare/answer.js');
const { unmergeable } = await import('../../ui/assets/adapters/actions.js');

const field = (usual, words = {}) => ({ default: usual, words });

test('codes are words, and an automatic value is an empty field', () => {
  const steps = field(0, { auto: 0, never: -1 });
  assert.deepEqual([0, -1, 12].map((value) => written(steps, value)), ['', 'never', '12']);
  assert.equal(written(field('auto')), '');
  assert.equal(written(field(1, { off: 0 }), 0), 'off');
  assert.equal(written(field('x'), ['q_proj', 'v_proj']), 'q_proj, v_proj');
  assert.equal(written(field(16)), '16');
});

test('a text of several lines keeps them', () => {
  const text = { name: 'method.init_text', title: 'Initial text', type: 'text', choices: [], lines: 4, ...field('') };
  const setting = new Setting(text);
  setting.fill('One\n two');
  assert.deepEqual([setting.control.tag, setting.value()], ['textarea', 'One\n two']);
  assert.equal(new Setting({ ...text, lines: 0 }).control.tag, 'input');
});

test('what a run starts from is chosen from a list, of datasets and of adapters', () => {
  for (const name of ['data.path', 'train.init_adapter']) {
    const text = { name, title: name, type: 'text', choices: [], ...field('') };
    const setting = new Setting(text, [['', 'none'], ['a', 'a']]);
    assert.equal(setting.input.tag, 'select', name);
    assert.equal(setting.other.attributes.placeholder.includes('hub'), name === 'data.path');
  }
});

test('GPUs are picked together, everything else alone', () => {
  assert.deepEqual(pickedDevices([]), ['auto']);
  assert.deepEqual(pickedDevices(['auto', 'cuda:1']), ['cuda:1']);
  assert.deepEqual(pickedDevices(['cuda:1', 'cuda:0']), ['cuda:1', 'cuda:0']);
  assert.deepEqual(pickedDevices(['cuda:1', 'cpu']), ['cpu']);
});

test('a method without a picture of its own has that of its phase', () => {
  document.createElementNS = (_, tag) => document.createElement(tag);
  assert.equal(picture('new one', 'weights').outline, picture('full', 'weights').outline);
});

test('an answer is old once its lane has other weights', () => {
  const answer = { reason: 'stop', active: { stack: [{ name: 'a', weight: 1 }] } };
  const lane = (weight) => ({ stack: [{ name: 'a', weight }] });
  assert.deepEqual([1, 0.5, 0].map((weight) => isOld(answer, lane(weight))), [false, true, true]);
  assert.equal(isOld({ reason: 'stop', active: { stack: [] } }, lane(0)), false);
  assert.equal(isOld({ active: answer.active }, lane(0.5)), false, 'it is still being written');
  const below = { name: 'below', weight: 1 }; // what it was trained on is added
  const on = { reason: 'stop', lane: 'm~a:1', active: { stack: [below, { name: 'a', weight: 1 }] } };
  assert.deepEqual([1, 0.5].map((weight) => isOld(on, lane(weight))), [false, true]);
});

test('only adapters of one base that can merge are merged', () => {
  const one = { mergeable: true, base: 'a', method_title: 'LoRA' };
  assert.equal(unmergeable([one, { ...one }]), '');
  assert.match(unmergeable([one, { ...one, base: 'b' }]), /different bases/);
  const prefix = { ...one, mergeable: false, method_title: 'Prefix tuning' };
  assert.match(unmergeable([one, prefix]), /^Prefix tuning cannot/);
});

test('a form is judged once more for a model that was just looked at, however often it stays unknown', async () => {
  globalThis.fetch = async () => ({ ok: true, json: async () => ({ looked: true, error: 'unknown' }) });
  const judged = [], page = { found: { sizes: {}, values: {} }, know() {},
    changed: () => judged.push(page.found.values) };
  const preflight = new Preflight(page);
  for (const values of [{}, {}, { 'model.path': 'a' }, { 'model.path': 'a' }, { 'model.path': 'a',
    'model.revision': '2' }]) {
    page.found.values = values;
    await preflight.look();
  }
  assert.equal(judged.length, 3);
});

test('an estimate is of the form it was made for, and forgotten with another', () => {
  const preflight = Object.assign(new Preflight({ found: {} }), { look() {} });
  preflight.take({ set: ['a'] });
  preflight.seconds = 3;
  preflight.take({ set: ['a'] });
  assert.equal(preflight.seconds, 3);
  preflight.take({ set: ['a', 'b'] });
  assert.equal(preflight.seconds, null);
});

const { Train } = await import('../../ui/assets/train/train.js');

const formOf = (answer, method = 'lora') => {
  const setting = (name) => ({ field: { name }, is: '', fill(value = '') { this.is = value; },
    value() { return this.is; } });
  return Object.assign(Object.create(Train.prototype), { method, asked: [], took: [],
    settings: new Map([['name', setting('name')]]),
    ofMethod: new Map(['lora', 'full'].map((name) => [name, [setting('method.r')]])),
    ask: async () => answer, take(found) { this.took.push(found); }, showMethod() {},
    changed() { this.asked.push(this.values()); } });
};

test('a refused address fills the form with what can be read, and is not judged again', async () => {
  const error = { text: 'no such field' }, values = { name: 'mine', 'method.name': 'other', 'method.r': 4 };
  for (const [answer, left] of [[{ error, values }, ['mine', 4, 'lora']], [{ error }, ['', '', 'lora']],
    [{ values: { ...values, 'method.name': 'full' } }, ['mine', 4, 'full']], [{ values: {} }, ['', '', 'lora']]]) {
    const page = formOf(answer);
    await page.open({ address: '?set=x' });
    assert.deepEqual([...page.all().map((one) => one.value()), page.method], left);
    assert.deepEqual([page.took, page.asked], [[answer], []]);
  }
  const page = formOf({ error }, 'full');
  page.all()[0].fill('typed');
  await page.open({ preset: 'forgotten' });
  assert.deepEqual([page.all()[0].value(), page.method, page.asked], ['typed', 'full', []]);
});

const { before } = await import('../../ui/assets/train/launch.js');

test('a queued run starts after those before it in the line of its device and one that is running there', () => {
  const job = (id, state, position, wanted = 'auto') => ({ id, state, position, device_wanted: wanted });
  const mine = job(5, 'queued', 3), others = [job(2, 'queued', 7), job(9, 'queued', 1), job(4, 'queued', 3),
    job(1, 'succeeded', 0), job(3, 'running', 2, 'network'), job(6, 'queued', 2, 'cuda:1'), job(7, 'paused', 2)];
  assert.equal(before(mine, [mine, ...others]), 2);
  assert.equal(before(mine, [mine, ...others, job(10, 'running', 9), job(11, 'starting', 9)]), 3);
});

const { Adapters } = await import('../../ui/assets/adapters/adapters.js');

test('as many adapters are compared as there are lanes beside the base, and more are refused with a reason', () => {
  const page = Object.assign(Object.create(Adapters.prototype), { max_lanes: 4, picked: new Set(),
    count: document.createElement('span'), merge: {}, mix: {}, give: {}, together: {} });
  page.adapters = [1, 2, 3, 4].map((id) => ({ id, base: 'starter', mergeable: true }));
  const pick = (many) => {
    page.picked = new Set(page.adapters.slice(0, many).map(({ id }) => id));
    page.chose();
    return [page.together.disabled, page.count.textContent];
  };
  assert.deepEqual(pick(3), [false, '3 selected']);
  assert.deepEqual(pick(4), [true, '4 selected · Compare takes up to 3 adapters.']);
});

const { Upload } = await import('../../ui/assets/core/upload.js');

test('an upload says that its import waits, and leads to it', async () => {
  globalThis.XMLHttpRequest = class {
    upload = {}; status = 200; response = { path: 'p' };

    open() {} send() { this.onload(); }
  };
  Object.assign(globalThis, { removeEventListener() {} });
  const states = ['queued', 'paused', 'running', 'succeeded'], seen = [];
  const upload = new Upload((name) => seen.push(name));
  globalThis.fetch = async (path) => {
    if (/outcome/.test(path)) seen.push(upload.line.textContent);
    const state = /data.import|outcome/.test(path) ? states.shift() : null;
    return { ok: true, json: async () => ({ id: 7, state, waits: '', outcome: { name: 'rows' } }) };
  };
  await upload.send({ name: 'a.csv', size: 1 });
  assert.deepEqual(seen, ['Importing … queued', 'Importing … paused', 'Importing … ', 'rows']);
});

const { findingParts, modelWords, planWords } = await import('../../ui/assets/train/guide.js');

test('a model and a plan in words', () => {
  assert.equal(modelWords({ name: 'Starter', here: true }), 'Starter');
  assert.equal(modelWords({ name: 'o/m', parameters: 1.2e9, gated: true, suggested: true }),
    'o/m · 1.20\u202fB parameters · to download · gated · suggested');
  assert.equal(planWords({ unknown: 'Known once the model is downloaded.' }), 'Known once the model is downloaded.');
  const known = { seconds: 90, total_steps: 114, device: 'cpu', total_bytes: 2 ** 30 };
  assert.match(planWords(known), /1:30.min for 114 steps on cpu, with 1.00.GiB of memory\.$/);
  assert.match(planWords({ ...known, fits: false }), /of memory\. This does not fit: /);
});

test('a finding is a sentence and a command', () => {
  assert.deepEqual(findingParts('The GPU is not used. Run: pip install torch'),
    { sentence: 'The GPU is not used.', command: 'pip install torch' });
  assert.equal(findingParts('A note.').command, '');
});
