
// Optional: without this script the page shows the same figures.
for (const timeline of document.querySelectorAll(".timeline")) {
  const words = JSON.parse(timeline.dataset.words);
  const left = Number(timeline.dataset.left), width = Number(timeline.dataset.width);
  const picture = timeline.querySelector("svg");
  const cursor = timeline.querySelector(".cursor");
  const slider = timeline.querySelector("input");
  const output = timeline.querySelector("output");
  const show = (place) => {
    const x = left + (width * (place + 0.5)) / words.length;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    output.textContent = words[place];
    slider.setAttribute("aria-valuetext", words[place]);
  };
  timeline.querySelector(".read").hidden = false;
  output.textContent = "point at the picture, or move this";
  slider.addEventListener("input", () => show(Number(slider.value)));
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * picture.viewBox.baseVal.width;
    const place = Math.floor(((x - left) / width) * words.length);
    slider.value = Math.min(words.length - 1, Math.max(0, place));
    show(Number(slider.value));
  });
}
