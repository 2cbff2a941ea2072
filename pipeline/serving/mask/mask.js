// A mask over the codes of an image, painted with a pointer or by keys. Its value is a text of a 0 or a 1 for each code,
// in raster order.
const cells = () => [...element.querySelectorAll(".cells button")];
const isPainted = (cell) => cell.getAttribute("aria-pressed") === "true";
const paint = (cell, painted) => cell.setAttribute("aria-pressed", painted);
const publish = () => { props.value = cells().map((cell) => (isPainted(cell) ? "1" : "0")).join(""); };
let stroke = null; // what the pointer that is down makes of the codes that it meets: true or false

element.addEventListener("pointerdown", (event) => {
  const cell = event.target.closest(".cells button");
  if (!cell) return;
  event.preventDefault();
  cell.releasePointerCapture(event.pointerId); // a finger would otherwise belong to the code that it touched first
  stroke = !isPainted(cell);
  paint(cell, stroke);
});
element.addEventListener("pointermove", (event) => {
  if (stroke === null) return;
  const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest(".cells button");
  if (cell && element.contains(cell)) paint(cell, stroke);
});
for (const end of ["pointerup", "pointercancel"]) {
  window.addEventListener(end, () => {
    if (stroke !== null) publish();
    stroke = null;
  });
}
element.addEventListener("keydown", (event) => {
  const all = cells(), at = all.indexOf(event.target);
  if (at < 0) return;
  const columns = Number(element.querySelector(".cells").dataset.columns);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (event.key in steps) all[at + steps[event.key]]?.focus();
  else if (event.key === " " || event.key === "Enter") { paint(event.target, !isPainted(event.target)); publish(); }
  else return;
  event.preventDefault();
});
