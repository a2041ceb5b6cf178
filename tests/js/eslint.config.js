// Rules for the pages' JavaScript and its tests: eslint's recommended set and a few of our own.

import js from '@eslint/js';
import globals from 'globals';

const own = {
  'no-unused-vars': ['error', { caughtErrors: 'none', ignoreRestSiblings: true }],
  'no-restricted-globals': ['error', 'event', 'name', 'status', 'length', 'parent', 'top'],
  'no-restricted-properties': ['error', { property: 'innerHTML' }, { property: 'outerHTML' }],
  'no-var': 'error',
  'prefer-const': 'error',
  eqeqeq: ['error', 'always', { null: 'ignore' }],
  'no-eval': 'error',
  'no-implied-eval': 'error',
  'no-duplicate-imports': 'error',
  'max-len': ['error', { code: 120 }],
  'max-lines': ['error', 400],
};

export default [
  js.configs.recommended,
  { files: ['ui/assets/**/*.js'], languageOptions: { globals: globals.browser }, rules: own },
  { files: ['tests/js/**/*.js'], languageOptions: { globals: { ...globals.node, ...globals.browser } }, rules: own },
];
