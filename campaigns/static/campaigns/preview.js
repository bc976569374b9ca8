// Another reader was chosen: show the letter as she gets it. Select2 tells jQuery only.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const choice = document.querySelector("[data-choose-reader] select");
  if (choice && window.django && window.django.jQuery) {
    window.django.jQuery(choice).on("change", () => choice.form.submit());
  }
});
