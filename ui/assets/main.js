// Entry point of every page: the theme switch, the queue indicator in the header, and the custom
// elements. A page is one element that gradio only has to put into the document.

import { h, text } from './core/dom.js';
import { isLive, subscribe } from './core/live.js';
import { Upload } from './core/upload.js';
import { Compare } from './compare/compare.js';
import { Runs } from './runs/runs.js';
import { Machine } from './system/system.js';
import { Preflight, Presets } from './train/preflight.js';
import { Launch, Notes } from './train/train.js';

document.addEventListener('click', (event) => {
  if (!event.target.closest('#s-theme')) return;
  window.studioTheme(document.documentElement.classList.contains('dark') ? 'light' : 'dark');
});

/** 1 running · 2 queued, and a word when the server or the supervisor is away. */
function pulse() {
  const node = document.querySelector('.s-pulse');
  const dot = h('i', {}), words = h('span', {});
  node.append(dot, words);
  let away = false, said = '';
  const show = () => {
    text(words, away ? 'The studio is not answering …' : said);
    node.dataset.state = away ? 'failed' : node.dataset.calm;
  };
  subscribe({
    element: node,
    onJobs(jobs) {
      const running = jobs.filter((job) => isLive(job) && job.state !== 'queued');
      const queued = jobs.filter((job) => job.state === 'queued');
      const parts = [running.length && `${running.length} running`,
        queued.length && `${queued.length} queued`].filter(Boolean);
      said = parts.join(' · ') || 'Idle';
      node.dataset.calm = running.length ? 'running' : 'queued';
      show();
    },
    onLink(ok) { if (away === ok) { away = !ok; show(); } },
  });
}

if (document.querySelector('.s-pulse')) pulse();

customElements.define('studio-runs', Runs);
customElements.define('studio-launch', Launch);
customElements.define('studio-notes', Notes);
customElements.define('studio-upload', Upload);
customElements.define('studio-preflight', Preflight);
customElements.define('studio-presets', Presets);
customElements.define('studio-compare', Compare);
customElements.define('studio-system', Machine);

// Their modules are many, and no other page needs them.
if (document.querySelector('studio-adapters') || location.pathname.startsWith('/adapters')) {
  import('./adapters/adapters.js').then(({ Adapters }) => customElements.define('studio-adapters', Adapters));
}
if (document.querySelector('studio-data') || location.pathname.startsWith('/data')) {
  import('./data/data.js').then(({ Data }) => customElements.define('studio-data', Data));
}
