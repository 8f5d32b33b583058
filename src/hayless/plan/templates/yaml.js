// Plain data as YAML in blocks, which a recipe is written in. Text is quoted wherever it might be read as something else.
function yamlScalar(value) {
  if (typeof value !== "string") return JSON.stringify(value);
  const plain = /^[A-Za-z/._][\w ./+-]*$/.test(value) && !/ $/.test(value);
  return plain && !/^(true|false|null|yes|no|on|off|y|n|\.inf|\.nan|[._\d]+(e[+-]?\d+)?)$/i.test(value) ? value : JSON.stringify(value);
}

function yaml(value, indent = "") {
  const inner = `${indent}  `;
  const empty = (held) => typeof held !== "object" || held === null || !Object.keys(held).length;
  const after = (held, deeper) => (empty(held) ? ` ${yamlScalar(held)}\n` : `\n${yaml(held, deeper)}`);
  if (Array.isArray(value))
    return value.map((held) => (empty(held) ? `${indent}- ${yamlScalar(held)}\n` : `${indent}- ${yaml(held, inner).slice(inner.length)}`)).join("");
  return Object.entries(value).map(([name, held]) => `${indent}${yamlScalar(name)}:${after(held, inner)}`).join("");
}
