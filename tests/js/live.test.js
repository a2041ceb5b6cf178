import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { append, hues, poke, progress, resumes, showJobs, stages, stateName, subscribe } =
  await import('../../ui/assets/core/live.js');

test('new points replace the steps that a resumed run repeats', () => {
  const runs = new Map();
  append(runs, 3, { x: [1, 2, 3, 4], y: [9, 8, 7, 6] });
  append(runs, 3, { x: [3, 4, 5], y: [70, 60, 50] });
  append(runs, 4, { x: [1], y: [1], thinned: true });
  assert.deepEqual([3, 4].map((run) => runs.get(run).thinned), [undefined, true]);
  assert.deepEqual(runs.get(3), { x: [1, 2, 3, 4, 5], y: [9, 8, 70, 60, 50] });
});

test('two runs never share a colour while one is free', () => {
  assert.deepEqual([...hues([1, 11, 2])], [[1, 0], [2, 1], [11, 2]]);
});

test('progress and state in words', () => {
  assert.equal(progress({ step: 120, total_steps: 400 }), '120 / 400 steps · 30\u202f%');
  assert.equal(progress({ step: 5 }), '5 steps');
  assert.equal(progress({ step: 0 }), '');
  assert.equal(stateName({ state: 'succeeded', ended: 'stopped' }), 'stopped');
});

test('a run that ended before its first step is started again, not resumed', () => {
  assert.equal(resumes({ state: 'failed', step: 0 }), 'Restart');
  assert.equal(resumes({ state: 'failed', step: 3 }), 'Resume');
  assert.equal(resumes({ state: 'paused', step: 0 }), 'Resume');
});

test('the stages of a chain are what led to a run and what follows it', () => {
  const jobs = [null, 1, 2, null, 2, 99].map((before, i) => ({ id: i + 1, stage_of: before }));
  const chain = (id) => stages(jobs[id - 1], jobs).map((one) => one.id);
  assert.deepEqual(chain(3), [1, 2, 3]);
  assert.deepEqual(chain(1), [1, 2, 3, 5]);
  assert.deepEqual([chain(4), chain(6)], [[4], [6]]);
});

test('the question of a row stays while its phase and bar change, and goes with the state', () => {
  const list = document.createElement('ol'), job = { id: 1, name: 'sums', actions: ['cancel'], total_steps: 4 };
  const drawn = (more) => {
    showJobs(list, [{ ...job, ...more }]);
    return list.all((one) => one.tag === 'button')[0];
  };
  const cancel = drawn({ state: 'running', phase: 'Reading 10', step: 1 });
  cancel.listeners.click({});
  assert.equal(drawn({ state: 'running', phase: 'Reading 20', step: 2 }), cancel);
  assert.equal(cancel.textContent, 'Really cancel?');
  assert.match(list.textContent, /Reading 20/);
  assert.equal(list.all((one) => one.attributes.role === 'progressbar')[0].firstChild.style.width, '50%');
  cancel.listeners.keydown({ key: 'Escape', preventDefault() {}, stopPropagation() {} });
  assert.equal(cancel.textContent, 'Cancel');
  cancel.listeners.click({});
  cancel.listeners.blur();
  assert.equal(cancel.textContent, 'Cancel');
  assert.notEqual(drawn({ state: 'stopping', phase: 'Reading 20', step: 2 }), cancel);
});

test('a job that is selected counts as gone only by an answer to a question that names it', async () => {
  const told = [], next = [];
  const listed = { digest: 'a', whole: true, removed: [], queue: {}, items: [{ id: 9, state: '' }] };
  const soon = () => new Promise((done) => { setTimeout(done, 1); });
  globalThis.fetch = (path) => new Promise((done) => { next.push({ path, done }); });
  const asked = async () => {
    while (!next.length) await soon();
    return next.pop();
  };
  const give = (news) => ({ ok: true, status: news ? 200 : 204, json: async () => news });
  const hear = (name, selection) => subscribe({ ...selection, onJobs: (jobs, _, __, all) =>
    told.push([name, jobs.map(({ id }) => id).join(), all]), onDetail: ({ id }) => told.push([name, 'detail', id]) });
  hear('bar', {});
  (await asked()).done(give({ jobs: listed }));
  while (!told.length) await soon();
  assert.deepEqual(told.splice(0), [['bar', '9', true]]);

  hear('page', { detail: () => [3, 'log', ''] });
  assert.deepEqual(told.splice(0), [['page', '9', false]]);
  const { path, done } = await asked();
  assert.match(path, /detail=3/);
  document.hidden = true; // the last poll
  done(give({ detail: { id: 3 } }));
  while (told.length < 4) await soon();
  assert.deepEqual(told.filter(([name]) => name === 'page'), [['page', '9', true], ['page', 'detail', 3]]);
});

test('all are told again once a minute, and what ended is trained only if it trains', async (context) => {
  const soon = () => new Promise((done) => { setTimeout(done, 1); });
  const shown = [];
  globalThis.localStorage = { getItem: () => 'on' };
  globalThis.Notification = class { static permission = 'granted'; constructor(words) { shown.push(words); } };
  let times = 0, news = null, polls = 0, now = Date.now();
  const ended = [];
  context.mock.method(Date, 'now', () => now);
  globalThis.fetch = async () => { polls += 1; return { ok: true, status: news ? 200 : 204, json: async () => news }; };
  const poll = async (jobs, removed = []) => {
    const before = polls;
    news = jobs && { jobs: { digest: 'b', whole: false, removed, queue: {}, items: jobs } };
    poke();
    while (polls === before) await soon();
    await soon();
    return times;
  };
  document.hidden = false;
  context.after(() => { document.hidden = true; globalThis.localStorage = { getItem: () => 'off' }; }); // no more polls
  subscribe({ onJobs: () => { times += 1; }, onEnded: (jobs) => ended.push(jobs.map(({ id }) => id).join()) });
  await poll();
  const first = await poll();
  assert.equal(await poll(), first);
  now += 61_000;
  assert.equal(await poll(), first + 1);
  assert.equal(await poll(), first + 1);
  const jobs = (state) => ['train', 'import'].map((kind, i) => ({ id: 20 + i, name: kind, kind, state }));
  await poll(jobs('running'));
  await poll(jobs('succeeded'));
  assert.deepEqual(shown, ['train is trained', 'import is done']);
  await poll([{ id: 20, state: 'succeeded', tags: ['good'] }, { id: 30, state: 'failed' }]); // 30 was never seen alive
  await poll([], [20]);
  assert.deepEqual(ended, ['20,21', '30', '20'], 'what was deleted is told too');
});

const { Detail } = await import('../../ui/assets/runs/run.js');

test('a copy of the settings of a run opens only if they can be read', async () => {
  for (const [detail, opened] of [[{ content: { query: 'set=method.r%3D4' } }, '/?set=method.r%3D4'],
    [{ content: { query: '' } }, '/?set='], [{ content: { query: '', error: 'no such field' } }, undefined],
    [{ error: { text: 'gone' } }, undefined]]) {
    globalThis.fetch = async () => ({ ok: true, json: async () => ({ detail }) });
    delete location.href;
    await Detail.prototype.duplicate.call({ job: { id: 1 } });
    assert.equal(location.href, opened);
  }
});

const { asked, calmWords, queuedWords, readAt } = await import('../../ui/assets/runs/run_parts.js');

test('a remedy becomes the arguments of its action', () => {
  assert.deepEqual(asked({ action: 'duplicate', values: { 'train.learning_rate': 0.001, 'data.max_length': 64 } }),
    { set: ['train.learning_rate=0.001', 'data.max_length=64'] });
  assert.deepEqual(asked({ action: 'extend', values: { epochs: 2 } }), { epochs: 2 });
});

test('a running run is read ten times, an ended one once', () => {
  const at = (step, state = 'running') => readAt({ id: 1, state, step, total_steps: 100 });
  assert.equal(new Set([...Array(100).keys()].map((step) => at(step))).size, 10);
  assert.equal(at(10, 'succeeded'), at(20, 'succeeded'));
});

test('what is queued, and few held-out rows, are said', () => {
  assert.match(queuedWords({ steps: 133, seconds: 90 }), /133 steps is queued. It takes about 1:30.min/);
  assert.match(queuedWords({ steps: 133, seconds: null }), /133 steps is queued\.$/);
  assert.match(calmWords(3), /rests on 3 rows/);
  assert.doesNotMatch(calmWords(8) + calmWords(null), /rests/);
});

test('a log is not drawn again while some of it is selected', () => {
  const detail = Object.assign(Object.create(Detail.prototype), { job: { id: 1 }, view: 'log', digest: 'old',
    body: document.createElement('div') });
  detail.body.contains = (node) => node === 'mine';
  const fill = (selected, anchorNode) => {
    globalThis.getSelection = () => ({ isCollapsed: !selected, anchorNode });
    detail.fill({ id: 1, view: 'log', digest: anchorNode, content: `log of ${anchorNode}` });
    return [detail.digest, detail.body.textContent];
  };
  assert.deepEqual(fill(true, 'mine'), ['old', '']);
  assert.deepEqual(fill(true, 'other'), ['other', 'log of other']);
  assert.deepEqual(fill(false, 'mine'), ['mine', 'log of mine']);
});
