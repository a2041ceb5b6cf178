import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { extent, label, logTicks, nearest, smooth, ticks } = await import('../../ui/assets/core/chart_canvas.js');
const { board, Chart, Group } = await import('../../ui/assets/core/chart.js');

test('ticks are round values inside the range, at least two', () => {
  assert.deepEqual(ticks(0, 10, 5), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual(ticks(0.1, 0.35, 3), [0.1, 0.2, 0.3]);
  assert.ok(ticks(0.66, 9.8, 3).length >= 2);
  assert.deepEqual(ticks(0, 3, 10, true), [0, 1, 2, 3]); // whole steps only
  assert.deepEqual(ticks(5, 5, 4), [5]);
});

test('log ticks are powers of ten, with 2 and 5 over a short range', () => {
  assert.deepEqual(logTicks(1, 1000), [1, 10, 100, 1000]);
  assert.deepEqual(logTicks(1, 10), [1, 2, 5, 10]);
});

test('smoothing is an unbiased moving average over gaps', () => {
  const y = [4, 2, 3];
  assert.equal(smooth([0, 1, 2], y, 0), y);
  assert.deepEqual(smooth([0, 1, 2], [5, 5, 5], 0.9).map((v) => +v.toFixed(9)), [5, 5, 5]);
  const [first, second] = smooth([0, 1], [4, 2], 0.5); // (4·0.25 + 2·0.5) / 0.75
  assert.equal(first, 4);
  assert.equal(second, 2 + 2 / 3);
  assert.ok(Number.isFinite(smooth([0, 1, 2], [1, NaN, 3], 0.6)[1]));
});

test('nearest finds the closest point, -1 in an empty curve', () => {
  assert.equal(nearest([], 3), -1);
  assert.equal(nearest([0, 10, 20], 14), 1);
  assert.equal(nearest([0, 10, 20], 16), 2);
  assert.equal(nearest([0, 10, 20], 99), 2);
});

test('the extent covers raw values in sight and ignores what a log axis cannot show', () => {
  const line = { x: [0, 1, 2], y: [2, 2, 2], raw: [1, 100, 3] };
  const [low, high] = extent([line], 0, 2, false);
  assert.ok(low <= 1 && high >= 100);
  assert.ok(extent([line], 2, 2, false)[1] < 5); // the spike is outside
  assert.equal(extent([{ x: [0], y: [-1] }], 0, 1, true), null);
  assert.equal(extent([], 0, 1, false), null);
});

test('a line without a point in sight counts with the two that it joins there, none beyond its ends', () => {
  const line = { x: [0, 10, 20], y: [1, 3, 90] };
  const [low, high] = extent([line], 4, 6, false);
  assert.ok(low <= 1 && high >= 3 && high < 5);
  assert.ok(extent([line], 9, 11, false)[1] < 5); // the next point is out of sight
  assert.equal(extent([line], 21, 30, false), null);
  assert.equal(extent([line], -5, -1, false), null);
});

test('axis labels are short, and different where the marks are', () => {
  assert.deepEqual([0, 0.25, 12500, 0.00004, 2e6].map(label), ['0', '0.25', '12.5k', '4e−5', '2M']);
  assert.deepEqual([100200, 100400, 2.30012, 2.30014].map(label), ['100.2k', '100.4k', '2.30012', '2.30014']);
});

/** A chart with one curve, and its plot of no size: as it is behind its table. */
function drawn(options = {}) {
  const chart = new Chart(new Group(), { name: 'loss', title: 'Loss', ...options });
  chart.group.hues = new Map([[7, 0]]);
  chart.lines = new Map([[7, { x: [0, 10], y: [1, 2] }]]);
  chart.scale = { x: (v) => v * 10, y: (v) => v, step: (px) => px / 10 };
  return chart;
}

test('the table and the legend follow the values while the plot is behind them', () => {
  const chart = drawn();
  chart.toggleTable();
  chart.draw();
  assert.match(chart.table.textContent, /102\.0/); // step 10, the newest first
  chart.lines.set(7, { x: [0, 10, 20], y: [1, 2, 0.5] });
  chart.draw();
  assert.match(chart.table.textContent, /200\.5/);
  assert.match(chart.legend.textContent, /0\.5/);
  assert.equal(chart.element.dataset.points, 3);
});

test('a thinned curve is fetched again for its table and where it is zoomed, however short it came', async () => {
  const chart = drawn(), asked = [], whole = { x: [0, 5, 10], y: [1, 3, 2] };
  globalThis.fetch = async (url) => {
    asked.push(url);
    return { ok: true, status: 200, json: async () => ({ data: { loss: { 7: whole } } }) };
  };
  assert.equal((await chart.rows()).length, 3);
  chart.lines.get(7).thinned = true;
  assert.deepEqual((await chart.rows()).slice(1), [[0, 1], [5, 3], [10, 2]]);
  const { group, update } = board(['loss']);
  group.hues = chart.group.hues;
  for (const thinned of [false, true]) {
    update(new Map([['loss', new Map([[7, { x: [0, 10], y: [1, 2], thinned }]])]]));
    group.set({ zoom: [4, 6] });
  }
  assert.deepEqual(asked.map((url) => /bins=0|low=4&high=6/.exec(url)?.[0]), ['bins=0', 'low=4&high=6']);
});

test('the keys leave a zoom in which no point is in sight, and + ends at one step', () => {
  const chart = drawn(), press = (key) => chart.key({ key, preventDefault() {} });
  for (const key of ['Escape', '-']) {
    chart.group.zoom = [30, 40];
    chart.scale = null;
    press(key);
    assert.equal(chart.group.zoom, null);
  }
  chart.scale = {};
  for (let i = 0; i < 9; i++) press('+');
  const [from, to] = chart.group.zoom;
  assert.equal(to - from, 1);
  assert.ok(from >= 0 && to <= 10);
});

test('a double click resets the zoom and selects nothing, a single one selects its point', ({ mock }) => {
  mock.timers.enable({ apis: ['setTimeout'] });
  const picked = [], chart = drawn({ pick: ({ step }) => picked.push(step) });
  const { pointerdown, pointerup, dblclick } = chart.canvas.listeners;
  const click = () => [pointerdown, pointerup].forEach((act) => act({ button: 0, pointerId: 1, clientX: 101,
    clientY: 2 }));
  chart.group.zoom = [0, 10];
  click();
  click();
  dblclick();
  mock.timers.tick(2000);
  assert.deepEqual([chart.group.zoom, ...picked], [null]);
  chart.group.zoom = [0, 10];
  click();
  mock.timers.tick(2000);
  assert.deepEqual(picked, [10]);
});

test('a touch that turns into scrolling leaves no drag behind', () => {
  const chart = drawn();
  chart.canvas.listeners.pointerdown({ button: 0, pointerId: 1, clientX: 50, clientY: 2 });
  chart.canvas.listeners.pointercancel({ pointerId: 1 });
  assert.equal(chart.drag, null);
});

test('a click on a curve selects its point by the event it was given', () => {
  const picked = [];
  const chart = new Chart(new Group(), { name: 'loss', title: 'Loss', pick: (point) => picked.push(point) });
  chart.group.hues = new Map([[7, 0]]);
  chart.lines = new Map([[7, { x: [0, 10], y: [1, 2] }]]);
  chart.scale = { x: (v) => v * 10, y: (v) => v, step: (px) => px / 10 };
  const at = { button: 0, pointerId: 1, clientX: 101, clientY: 2 };
  assert.equal(globalThis.event, undefined);
  chart.canvas.listeners.pointerdown(at);
  chart.canvas.listeners.pointerup(at);
  assert.equal(picked.length, 1);
  assert.deepEqual([picked[0].run, picked[0].step], [7, 10]);
});

test('the held-out loss is hidden for a run of rewards only, and shown again for the next run', () => {
  const { charts: [loss, reward], update } = board(['reward', 'eval_loss']);
  const [held, rewards] = loss.options.name === 'eval_loss' ? [loss, reward] : [reward, loss];
  const line = new Map([[1, { x: [0], y: [1] }]]);
  const hidden = () => [held.element.hidden, rewards.element.hidden];
  update(new Map([['reward', line]]));
  assert.deepEqual(hidden(), [true, false]);
  update(new Map());
  assert.deepEqual(hidden(), [false, true]);
  update(new Map([['eval_loss', line]]));
  assert.deepEqual(hidden(), [false, true]);
});
