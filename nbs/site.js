// What Material for MkDocs leaves out for screen readers and keyboards
let buttons = 0;
function nameCopyButtons() {
  for (const bar of document.querySelectorAll('.md-code__nav:not([aria-label])'))
    bar.setAttribute('aria-label', `Code ${++buttons}`);
}
document.addEventListener('DOMContentLoaded', () => {
  document.querySelector('.md-search').setAttribute('aria-label', 'Search');
  for (const box of document.querySelectorAll('.md-typeset__scrollwrap, pre > code, .md-sidebar__scrollwrap'))
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
  for (const part of document.querySelectorAll('.md-nav--secondary .md-nav')) {  // parts of the table of contents
    part.removeAttribute('aria-label');
    part.setAttribute('role', 'presentation');
  }
  nameCopyButtons();
  new MutationObserver(nameCopyButtons).observe(document.body, {childList: true, subtree: true});
});
