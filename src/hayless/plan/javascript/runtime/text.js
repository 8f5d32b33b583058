  // Text
  const grouped = (digits) => digits.replace(/\B(?=(\d{3})+(?!\d))/g, ",");
  function str(value) {
    if (value === null || value === undefined) return "None";
    if (typeof value === "string") return value;
    if (value.$text !== undefined) return value.$text;
    if (value.__str__) return value.__str__();
    if (value instanceof Exception) return value.message;
    return repr(value);
  }
  function repr(value) {
    if (value === null || value === undefined) return "None";
    if (typeof value === "boolean") return value ? "True" : "False";
    if (typeof value === "number") return Number.isFinite(value) ? String(value).replace(/e([+-])(\d)$/, "e$10$2") : String(value).toLowerCase().replace("infinity", "inf");
    if (value.$text !== undefined) value = value.$text;
    if (typeof value === "string") {
      const quote = value.includes("'") && !value.includes('"') ? '"' : "'";
      return quote + value.replaceAll("\\", "\\\\").replaceAll(quote, "\\" + quote).replaceAll("\n", "\\n").replaceAll("\t", "\\t") + quote;
    }
    if (Array.isArray(value)) return `[${value.map(repr).join(", ")}]`;
    if (value instanceof Dict) return `{${items(value).map(([name, held]) => `${repr(name)}: ${repr(held)}`).join(", ")}}`;
    if (value instanceof PySet) return `{${[...value].map(repr).join(", ")}}`;
    return `<${value.constructor.name}>`;
  }
  // Ties go to the even digit, as in Python; toFixed rounds them up. Only a fraction of powers of two can be one.
  function fixed(value, digits) {
    const more = value.toFixed(digits + 1), tie = more.endsWith("5") && Number.isInteger(value * 2 ** (digits + 1));
    return tie && "02468".includes(more.at(digits ? -2 : -3)) ? more.slice(0, digits ? -1 : -2) : value.toFixed(digits);
  }
  function format(value, form) {
    const found = /^(?:(.)?([<>^]))?(\+)?(0)?(\d+)?(,)?(?:\.(\d+))?([dfgs%e]?)$/.exec(form);
    if (!found) fail("ValueError", `the format ${form} is not known here`);
    const [, filling, side, sign, zero, width, commas, digits, kind] = found;
    let text;
    if (typeof value !== "number") text = digits === undefined ? str(value) : str(value).slice(0, Number(digits));
    else if (kind === "f") text = fixed(value, Number(digits ?? 6));
    else if (kind === "%") text = `${fixed(100 * value, Number(digits ?? 6))}%`;
    else if (kind === "e") text = value.toExponential(Number(digits ?? 6)).replace(/e([+-])(\d)$/, "e$10$2");
    else if (kind === "g" || digits !== undefined) text = general(value, Number(digits ?? 6) || 1);
    else text = str(value);
    if (commas) text = text.replace(/\d+/, grouped);
    if (sign && typeof value === "number" && value >= 0) text = `+${text}`;
    const missing = Math.max(0, Number(width ?? 0) - text.length), fill = zero ? "0" : (filling ?? " ");
    if (!missing) return text;
    if (zero && /^[+-]/.test(text)) return text[0] + fill.repeat(missing) + text.slice(1);
    const direction = side ?? (typeof value === "number" ? ">" : "<");
    if (direction === "^") return fill.repeat(Math.floor(missing / 2)) + text + fill.repeat(Math.ceil(missing / 2));
    return direction === ">" ? fill.repeat(missing) + text : text + fill.repeat(missing);
  }
  function general(value, digits) {
    if (value === 0 || !Number.isFinite(value)) return repr(value);
    const [mantissa, power] = value.toExponential(digits - 1).split("e");
    const plain = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
    if (power >= -4 && power < digits) return plain(value.toFixed(digits - 1 - power));
    return `${plain(mantissa)}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  }

  // Methods of Python's own types
  const strip = (text, letters, left, right) => {
    const inside = letters ? (letter) => letters.includes(letter) : (letter) => /\s/.test(letter);
    let from = 0, to = text.length;
    while (left && from < to && inside(text[from])) from++;
    while (right && to > from && inside(text[to - 1])) to--;
    return text.slice(from, to);
  };
  const some = (found) => (Array.isArray(found) ? found : [found]);
  const STR = {
    startswith: (text, found) => some(found).some((each) => text.startsWith(each)),
    endswith: (text, found) => some(found).some((each) => text.endsWith(each)),
    removeprefix: (text, found) => (text.startsWith(found) ? text.slice(found.length) : text),
    removesuffix: (text, found) => (found && text.endsWith(found) ? text.slice(0, -found.length) : text),
    partition(text, found) {
      const at = text.indexOf(found);
      return at < 0 ? [text, "", ""] : [text.slice(0, at), found, text.slice(at + found.length)];
    },
    rpartition(text, found) {
      const at = text.lastIndexOf(found);
      return at < 0 ? ["", "", text] : [text.slice(0, at), found, text.slice(at + found.length)];
    },
    replace: (text, old, other) => text.replaceAll(old, () => other),
    join: (text, parts) => [...parts].map(str).join(text),
    split: (text, found = null) => (found === null ? text.trim().split(/\s+/).filter(Boolean) : text.split(found)),
    strip: (text, letters = "") => strip(text, letters, true, true),
    lstrip: (text, letters = "") => strip(text, letters, true, false),
    rstrip: (text, letters = "") => strip(text, letters, false, true),
    lower: (text) => text.toLowerCase(),
    upper: (text) => text.toUpperCase(),
    casefold: (text) => text.toLowerCase(),
    capitalize: (text) => text.slice(0, 1).toUpperCase() + text.slice(1).toLowerCase(),
    count: (text, found) => text.split(found).length - 1,
    find: (text, found) => text.indexOf(found),
    isdigit: (text) => /^\d+$/.test(text),
  };
