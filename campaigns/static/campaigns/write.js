// Beside what one writes: how long a line is, and how near the letter is to being clipped.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const kilobytes = (bytes) => (bytes / 1024).toFixed(1);

  for (const field of document.querySelectorAll("[data-count-bytes], [data-count-characters]")) {
    const hint = document.createElement("p");
    hint.className = "pp-size";
    field.insertAdjacentElement("afterend", hint);

    const show = () => {
      const characters = [...field.value].length;
      if (field.dataset.countBytes) {
        const most = Number(field.dataset.countBytes);
        const bytes = new TextEncoder().encode(field.value).length;
        hint.textContent =
          `${characters.toLocaleString()} characters, ${kilobytes(bytes)} KB. ` +
          `Gmail clips a letter at ${kilobytes(most)} KB.`;
        hint.classList.toggle("pp-size-over", bytes > most);
      } else {
        const shown = Number(field.dataset.countCharacters);
        hint.textContent = `${characters} of about ${shown} characters that mail programs show.`;
      }
    };
    field.addEventListener("input", show);
    show();
  }
});
