for (const figure of document.querySelectorAll(".slider")) {
  const control = figure.querySelector(".control");
  const input = figure.querySelector("input");
  const output = figure.querySelector("output");
  const choices = [...figure.querySelectorAll(".choice")];
  const show = () => {
    choices.forEach((choice, number) => { choice.hidden = number !== Number(input.value); });
    const name = choices[Number(input.value)].dataset.name;
    output.textContent = name;
    input.setAttribute("aria-valuetext", name);
  };
  if (choices.length > 1) {
    control.hidden = false;
    choices.forEach((choice) => { choice.querySelector(".of").hidden = true; });
    input.addEventListener("input", show);
    show();
  }
}
