// Theme: light or dark, as the system has it unless its user chose.

import { icon } from "./element.js";

const DARK = matchMedia("(prefers-color-scheme: dark)");

/** Follow the setting and the system, and let the button switch. */
export function followTheme(settings, button) {
  const isDark = () => (settings.values.theme ? settings.values.theme === "dark" : DARK.matches);
  const show = () => {
    document.documentElement.dataset.theme = isDark() ? "dark" : "light";
    const label = isDark() ? "Switch to light" : "Switch to dark";
    button.replaceChildren(icon(isDark() ? "light" : "dark"));
    button.setAttribute("aria-label", label);
    button.title = label;
  };
  button.addEventListener("click", () => settings.set("theme", isDark() ? "light" : "dark"));
  settings.onChange((name) => name === "theme" && show());
  DARK.addEventListener("change", show);
  show();
}
