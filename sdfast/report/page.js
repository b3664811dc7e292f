// Sorting, copying and picking out strategies. Without it the page shows the same, in the study's order.
'use strict';
const all = (q, at = document) => [...at.querySelectorAll(q)];
const say = text => { document.getElementById('said').textContent = text; };

for (const table of all('table[data-sort]')) {
  const body = table.tBodies[0], order = [...body.rows];
  all('thead th button', table).forEach(button => button.addEventListener('click', () => {
    const th = button.closest('th'), i = th.cellIndex, numeric = th.classList.contains('n');
    // numbers first from high to low, names first from a to z, the third click restores the study's order
    const cycle = numeric ? ['descending', 'ascending', 'none'] : ['ascending', 'descending', 'none'];
    const to = cycle[(cycle.indexOf(th.getAttribute('aria-sort')) + 1) % 3];
    all('th[aria-sort]', table).forEach(h => h.setAttribute('aria-sort', 'none'));
    th.setAttribute('aria-sort', to);
    const value = row => row.cells[i].dataset.v ?? '', sign = to === 'ascending' ? 1 : -1;
    const rows = to === 'none' ? order : [...order].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === '' || y === '') return (x === '') - (y === '');  // what has no value comes last either way
      return sign * (numeric ? x - y : x.localeCompare(y));
    });
    body.append(...rows);
    say(to === 'none' ? 'order of the study' : `sorted by ${button.textContent.trim()}, ${to}`);
  }));
}

for (const button of all('button[data-copy]')) button.addEventListener('click', async () => {
  const source = document.getElementById(button.dataset.copy), text = source.textContent, was = button.textContent;
  let done = true;
  try { await navigator.clipboard.writeText(text); }
  catch {
    source.closest('details').open = true;
    getSelection().selectAllChildren(source);
    done = document.execCommand('copy');
  }
  button.textContent = done ? 'Copied' : 'Selected: press Ctrl+C';
  say(button.textContent);
  setTimeout(() => { button.textContent = was; }, 1600);
});

for (const button of all('button[data-save]')) button.addEventListener('click', () => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([document.getElementById(button.dataset.save).textContent], {type: 'text/csv'}));
  link.download = 'table.csv';
  link.click();
  say('saved as table.csv');
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

for (const study of all('.study')) {
  const picked = new Set();
  all('.key button', study).forEach(button => button.addEventListener('click', () => {
    const s = button.dataset.pick;
    picked.has(s) ? picked.delete(s) : picked.add(s);
    study.classList.toggle('on', picked.size > 0);
    all('.key button', study).forEach(b => b.setAttribute('aria-pressed', picked.has(b.dataset.pick)));
    all('[data-s]', study).forEach(e => e.classList.toggle('lit', picked.has(e.dataset.s)));
  }));
}
