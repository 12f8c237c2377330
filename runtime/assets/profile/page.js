// The page is whole without this: a legend that singles a class out, and the numbers as a file.
"use strict";

const root = document.documentElement;
let chosen = null;

function single(name) {
  if (name) root.dataset.only = name;
  else delete root.dataset.only;
  for (const part of document.querySelectorAll("[data-class]"))
    part.classList.toggle("on", part.dataset.class === name);
}

for (const button of document.querySelectorAll(".legend button")) {
  const name = button.value;
  button.addEventListener("pointerenter", () => single(name));
  button.addEventListener("pointerleave", () => single(chosen));
  button.addEventListener("click", () => {
    chosen = chosen === name ? null : name;
    for (const other of document.querySelectorAll(".legend button"))
      other.setAttribute("aria-pressed", String(other.value === chosen));
    single(chosen);
  });
}

for (const button of document.querySelectorAll("button.save")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const text = document.getElementById(button.value).textContent;
    const link = document.createElement("a");
    const words = JSON.stringify(JSON.parse(text), null, 2) + "\n";
    link.href = URL.createObjectURL(new Blob([words], { type: "application/json" }));
    link.download = `${button.value}.json`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
