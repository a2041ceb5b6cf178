// Entry point of every page: the theme switch, the queue indicator in the header, and the module of
// the page in the address. It registers the element that gradio puts into the document.

import { dots, h, leftAt, ROOT, stay, t, text } from './core/dom.js';
import { isLive, subscribe } from './core/live.js';

document.addEventListener('click', (event) => {
  if (!event.target.closest('#s-theme')) return;
  window.studioTheme(document.documentElement.classList.contains('dark') ? 'light' : 'dark');
});

const chosen = document.querySelector('#s-language');
chosen?.addEventListener('click', () => {
  document.cookie = `studio-language=${chosen.dataset.language};path=/;max-age=31536000;samesite=lax`;
  location.reload(); // the address holds what was filled in; an upload under way asks first
});

/** The queue in the header: 1 running · 2 queued, or that the server does not respond. */
function queueIndicator(node) {
  const dot = h('i'), words = h('span');
  node.append(dot, words);
  let away = false, summary = '';
  const show = () => {
    text(words, away ? t`The server is not responding …` : summary);
    node.dataset.state = away ? 'failed' : node.dataset.calm;
  };
  subscribe({
    element: node,
    onJobs(jobs) {
      const running = jobs.filter((job) => isLive(job) && job.state !== 'queued');
      const queued = jobs.filter((job) => job.state === 'queued');
      summary = dots(running.length && t`${running.length} running`, queued.length && t`${queued.length} queued`)
        || t`Idle`;
      node.dataset.calm = running.length ? 'running' : 'queued';
      show();
    },
    onLink(ok) { if (away === ok) { away = !ok; show(); } },
  });
}

document.querySelector('#s-help')?.addEventListener('click', () =>
  import('./train/guide.js').then(({ openHelp }) => openHelp()));

document.querySelector('.s-skip')?.addEventListener('click', (event) => {
  event.preventDefault();
  const main = document.querySelector('main');
  main.tabIndex = -1;
  main.focus();
});

// Nothing is lost by leaving a page: the navigation leads to where it was left.
stay(true);
document.querySelector('.s-bar nav')?.addEventListener('pointerdown', restore, true);
document.querySelector('.s-bar nav')?.addEventListener('keydown', restore, true);
function restore({ target }) {
  const link = target.closest('a');
  if (link) link.search = leftAt(link.pathname);
}

const indicator = document.querySelector('.s-pulse');
if (indicator) queueIndicator(indicator);

const page = location.pathname.slice(ROOT.length).split('/').filter(Boolean)[0] ?? 'train';
if (document.querySelector(`link[rel=modulepreload][href$="/${page}/${page}.js"]`)) import(`./${page}/${page}.js`);
