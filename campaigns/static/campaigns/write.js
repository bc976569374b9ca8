// Beside what one writes: how long a line is, and how near the letter is to being clipped.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const kilobytes = (bytes) => (bytes / 1024).toFixed(1);
  // The sentence comes from the form, in the person's language.
  const words = (field, characters, size, most) =>
    field.dataset.countWords
      .replace("{characters}", characters.toLocaleString(document.documentElement.lang))
      .replace("{size}", size)
      .replace("{most}", most);

  for (const field of document.querySelectorAll("[data-count-bytes], [data-count-characters]")) {
    const hint = document.createElement("p");
    hint.className = "pp-size";
    field.insertAdjacentElement("afterend", hint);

    const show = () => {
      const characters = [...field.value].length;
      if (field.dataset.countBytes) {
        const most = Number(field.dataset.countBytes);
        const bytes = new TextEncoder().encode(field.value).length;
        hint.textContent = words(field, characters, kilobytes(bytes), kilobytes(most));
        hint.classList.toggle("pp-size-over", bytes > most);
      } else {
        const shown = Number(field.dataset.countCharacters);
        hint.textContent = words(field, characters, "", shown);
      }
    };
    field.addEventListener("input", show);
    show();
  }
});
