// A served report: asks whether the run has changed, and then loads the page again where and how it is being read.
"use strict";
(() => {
  const KEY = "syn4seg-report", SECONDS = 2, $ = (id) => document.getElementById(id);
  const CONTROLS = [["class", "change"], ["reason", "change"], ["sort", "change"], ["search", "input"], ["score", "input"], ["opacity", "input"]];
  const here = () => {  // the last heading above the upper edge: what stands above it may grow
    const heads = [...document.querySelectorAll("h2[id]")].filter((head) => head.getBoundingClientRect().top <= 1);
    const head = heads.at(-1);
    return { y: scrollY, head: head?.id, from: head?.getBoundingClientRect().top };
  };
  const keep = () => sessionStorage.setItem(KEY, JSON.stringify({
    place: here(), who: $("by-who")?.checked, page: +(/page (\d+) of/.exec($("count")?.textContent || "")?.[1] || 1),
    values: CONTROLS.map(([id]) => $(id)?.value), unfolded: [...document.querySelectorAll("details")].map((one) => one.open),
  }));
  const restore = () => {
    const kept = JSON.parse(sessionStorage.getItem(KEY) || "null");
    sessionStorage.removeItem(KEY);
    if (!kept) return;
    history.scrollRestoration = "manual";
    CONTROLS.forEach(([id, event], i) => {
      const node = $(id);
      if (!node || kept.values[i] === undefined || node.value === kept.values[i]) return;
      node.value = kept.values[i];
      if (node.value !== kept.values[i]) node.selectedIndex = 0;  // a choice that is gone
      node.dispatchEvent(new Event(event));
    });
    if (kept.who && $("by-who")) { $("by-who").checked = true; $("by-who").dispatchEvent(new Event("change")); }
    for (let page = 1; page < kept.page && $("next") && !$("next").disabled; page += 1) $("next").click();
    document.activeElement?.blur();
    document.querySelectorAll("details").forEach((one, i) => { one.open = !!kept.unfolded[i]; });
    const head = kept.place.head && $(kept.place.head);
    scrollTo(0, head ? scrollY + head.getBoundingClientRect().top - kept.place.from : kept.place.y);
  };
  const ask = async () => {
    const busy = $("detail")?.open || document.activeElement?.matches("input[type=search]");
    if (busy || document.hidden) return;
    try {
      const answer = await fetch("version", { cache: "no-store" });
      if (answer.ok && (await answer.text()) !== document.documentElement.dataset.version) { keep(); location.reload(); }
    } catch { /* the server has ended; the page stays as it is */ }
  };
  restore();
  setInterval(ask, 1000 * SECONDS);
})();
