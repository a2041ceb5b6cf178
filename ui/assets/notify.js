// A desktop notification when a run ends, if the person wants it: also while the tab is hidden.

const KEY = 'studio.notify';
const ENDS = { succeeded: 'is trained', failed: 'failed', cancelled: 'was cancelled',
  paused: 'is paused', interrupted: 'was interrupted' };

export const wanted = () => {
  try { return localStorage.getItem(KEY) === 'on' && Notification.permission === 'granted'; } catch {
    return false;
  }
};

/** Switch it; returns a sentence when the browser does not allow it. */
export async function toggle() {
  if (wanted()) { localStorage.setItem(KEY, 'off'); return ''; }
  if (typeof Notification === 'undefined') return 'This browser has no notifications.';
  if (await Notification.requestPermission() !== 'granted') {
    return 'The browser does not allow notifications from this page; its site settings do.';
  }
  localStorage.setItem(KEY, 'on');
  return '';
}

/** Compare a job with what it was; several tabs show one notification. */
export function notice(before, job) {
  const worked = before && ['starting', 'running', 'stopping'].includes(before.state);
  if (!worked || !ENDS[job.state] || !wanted()) return;
  const shown = new Notification(`${job.name} ${ENDS[job.state]}`, {
    body: job.error?.text ?? (job.last_loss == null ? '' : `loss ${job.last_loss.toPrecision(4)}`),
    tag: `studio-${job.id}-${job.attempt}-${job.state}`,
  });
  shown.onclick = () => { window.focus(); location.href = `/runs?run=${job.id}`; };
}
