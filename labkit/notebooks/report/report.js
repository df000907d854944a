
// Comfort only: the page reads the same without it.
const folds = [...document.querySelectorAll("details")];
for (const button of document.querySelectorAll("button[data-open]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    for (const fold of folds) fold.open = button.dataset.open === "yes";
  });
}
let closed = [];
addEventListener("beforeprint", () => {
  closed = folds.filter((fold) => !fold.open);
  for (const fold of closed) fold.open = true;
});
addEventListener("afterprint", () => {
  for (const fold of closed) fold.open = false;
});
const reveal = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let up = target; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", reveal);
if (location.hash) reveal();
// What scrolls can be scrolled with the keyboard.
const scrollers = new ResizeObserver((seen) => {
  for (const { target } of seen) {
    const fits = target.scrollWidth <= target.clientWidth && target.scrollHeight <= target.clientHeight;
    if (fits) target.removeAttribute("tabindex");
    else target.tabIndex = 0;
  }
});
for (const box of document.querySelectorAll(".rich, .scroll, pre")) scrollers.observe(box);
