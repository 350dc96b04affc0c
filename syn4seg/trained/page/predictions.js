// The predictions: filters and sorts the facts in the page; pictures load from the folder when they come into view.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("gallery-data").textContent), $ = (id) => document.getElementById(id), PAGE = 48;
  const state = { shown: [], page: 0 };
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) key === "style" ? Object.assign(node.style, value) : node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const percent = (share) => (100 * share).toFixed(share < 0.0995 ? 1 : 0) + " %";
  const place = (path) => path.split("/").map(encodeURIComponent).join("/");
  const shareOf = (item, k) => (item.classes || []).find(([one]) => one === k)?.[1] ?? 0;
  const sorts = {
    order: (a, b) => a.at - b.at, unsure: (a, b) => (a.confidence ?? 2) - (b.confidence ?? 2),
    sure: (a, b) => (b.confidence ?? -1) - (a.confidence ?? -1),
    area: (a, b) => largest(b) - largest(a),
  };
  const largest = (item) => $("class").value === "" ? Math.max(0, ...(item.classes || []).filter(([k]) => k).map(([, share]) => share)) : shareOf(item, +$("class").value);
  const picture = (item) => {
    if (item.error) return make("li", { class: "picture" }, make("h3", {}, item.name), make("p", { class: "bad" }, item.error));
    const path = item.overlay || item.mask, small = Math.max(...item.size) < 200;
    const image = make("img", { loading: "lazy", src: place(path), alt: `${item.name} with its classes`, width: item.size[0], height: item.size[1], class: small ? "small" : "" });
    if (!item.overlay && !data.palette) image.style.filter = "url(#palette)";
    const rows = item.classes.map(([k, share, sure]) => make("li", {}, make("span", { class: "swatch", style: { background: data.colors[k] } }),
      `${data.names[k]} ${percent(share)} (${percent(sure)})`));
    return make("li", { class: "picture" }, make("h3", {}, item.name), make("a", { class: "frame", href: place(path) }, image), make("ul", {}, ...rows),
      make("p", { class: "dim" }, `${item.size[0]} x ${item.size[1]} pixels, confidence ${percent(item.confidence)}; `, make("a", { href: place(item.mask) }, "mask")));
  };
  const draw = () => {
    const pages = Math.max(1, Math.ceil(state.shown.length / PAGE)), start = state.page * PAGE;
    $("count").textContent = `${state.shown.length} of ${data.items.length} pictures` + (pages > 1 ? `, page ${state.page + 1} of ${pages}` : "");
    $("previous").disabled = state.page === 0;
    $("next").disabled = state.page + 1 >= pages;
    $("cards").replaceChildren(...state.shown.slice(start, start + PAGE).map(picture));
    if (!state.shown.length) $("cards").append(make("li", {}, "No picture fits these filters."));
  };
  const select = () => {
    const k = $("class").value, text = $("search").value.trim().toLowerCase();
    state.shown = data.items.filter((item) => (k === "" || shareOf(item, +k) > 0)
      && (!text || item.name.toLowerCase().includes(text) || item.image.toLowerCase().includes(text)));
    state.shown.sort((a, b) => sorts[$("sort").value](a, b) || a.at - b.at);
    state.page = 0;
    draw();
  };
  const turn = (by) => { state.page += by; draw(); $("predictions").scrollIntoView(); };
  data.items.forEach((item, i) => { item.at = i; });
  data.names.forEach((name, k) => {
    const n = data.items.filter((item) => shareOf(item, k) > 0).length;
    if (n) $("class").append(make("option", { value: k }, `${name} (${n})`));
  });
  for (const id of ["class", "sort"]) $(id).addEventListener("change", select);
  $("search").addEventListener("input", select);
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  select();
})();
