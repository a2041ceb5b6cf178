import './dom_stub.js';
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const ASSETS = resolve(dirname(fileURLToPath(import.meta.url)), '../../ui/assets');
const files = readdirSync(ASSETS, { recursive: true }).filter((file) => file.endsWith('.js'))
  .map((file) => join(ASSETS, file));
const imports = (file) => [...readFileSync(file, 'utf8').matchAll(/from '(\.[^']+)'/g)]
  .map(([, path]) => resolve(dirname(file), path));

test('every module loads, so every name it imports exists', async () => {
  for (const file of files) await import(file);
});

test('modules import each other without circles, and core imports no page', () => {
  const done = new Set();
  const visit = (file, path) => {
    assert.ok(!path.includes(file), `circle: ${[...path, file].join(' → ')}`);
    if (done.has(file)) return;
    for (const next of imports(file)) visit(next, [...path, file]);
    done.add(file);
  };
  for (const file of files) {
    visit(file, []);
    if (dirname(file).endsWith('core')) for (const next of imports(file)) assert.equal(dirname(next), dirname(file));
  }
});
