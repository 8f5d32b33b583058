// Python's meaning of operations, types and functions, for translated code (`program.py`). Numbers are JavaScript's:
// whole numbers are exact up to 2^53. Lists and tuples are arrays; None is null, or undefined where nothing was given.
const py = (() => {
  class Named {
    constructor(values) { Object.assign(this, values); }
  }
  const namedOf = (given) => (given.at(-1) instanceof Named ? given.pop() : {});

  // Errors
  class Exception extends Error {
    constructor(...all) { super(); this.$init(...all); }
    $init(...all) { this.args = all; this.message ||= str(all[0] ?? ""); }
  }
  const kinds = {};
  for (const name of ["ArithmeticError", "AssertionError", "AttributeError", "Missing", "StopIteration", "TypeError", "ValueError"])
    kinds[name] = { [name]: class extends Exception {} }[name];
  for (const [name, base] of [["ZeroDivisionError", "ArithmeticError"], ["KeyError", "ValueError"], ["IndexError", "ValueError"]])
    kinds[name] = { [name]: class extends kinds[base] {} }[name];
  const fail = (kind, text) => { throw new kinds[kind](text); };

  // What a value is in a dict or a set: equal values have equal keys.
  let count = 0;
  function key(value) {
    if (value === null || value === undefined) return null;
    if (typeof value === "boolean") return Number(value);
    if (typeof value !== "object") return value;
    if (value.$text !== undefined) return value.$text;
    if (Array.isArray(value)) return `\u0001[${value.map(part).join()}]`;
    if (value instanceof PySet) return `\u0001{${[...value].map(part).sort().join()}}`;
    if (!value.constructor.$equal) return value;
    value.$key ??= `\u0001${value.constructor.name}(${value.constructor.$fields.map((name) => part(value[name])).join()})`;
    return value.$key;
  }
  const numbers = new WeakMap();
  function part(value) {
    const found = key(value);
    if (typeof found === "string") return `${found.length}:${found}`;
    if (found === null || typeof found !== "object" && typeof found !== "function") return String(found);
    if (!numbers.has(found)) numbers.set(found, count++);
    return `#${numbers.get(found)}`;
  }

  // Values by the keys of their names, and the names themselves where they are not their own keys.
  class Dict {
    constructor(pairs = []) {
      this.map = new Map();
      this.names = null;
      for (const [name, value] of pairs) this.set(name, value);
    }
    set(name, value) {
      const at = key(name);
      if (at !== name && !this.map.has(at)) (this.names ??= new Map()).set(at, name);
      this.map.set(at, value === undefined ? null : value);
    }
    get(name) { return this.map.get(key(name)); }
    has(name) { return this.map.has(key(name)); }
    delete(name) {
      const at = key(name);
      this.names?.delete(at);
      return this.map.delete(at);
    }
    *[Symbol.iterator]() { for (const at of this.map.keys()) yield this.names?.has(at) ? this.names.get(at) : at; }
  }
  class Counter extends Dict {
    constructor(values = []) {
      super();
      if (values instanceof Dict) for (const [name, value] of items(values)) this.set(name, value);
      else for (const value of values) this.set(value, (this.get(value) ?? 0) + 1);
    }
  }
  class PySet {
    constructor(values = []) {
      this.map = new Map();
      for (const value of values) this.add(value);
    }
    add(value) { const at = key(value); if (!this.map.has(at)) this.map.set(at, value); }
    has(value) { return this.map.has(key(value)); }
    delete(value) { return this.map.delete(key(value)); }
    [Symbol.iterator]() { return this.map.values(); }
  }
  class Enum {
    constructor(name, value, text) {
      this.name = name;
      this.value = value;
      if (text) this.$text = value;
    }
    static of(value) {
      const found = this.$members.find((member) => eq(member, value) || eq(member.value, value));
      return found ?? fail("ValueError", `${repr(value)} is not a valid ${this.name}`);
    }
    static [Symbol.iterator]() { return this.$members.values(); }
  }
  function members(kind, values, text) {
    kind.$members = Object.entries(values).map(([name, value]) => new kind(name, value, text));
    for (const member of kind.$members) Object.defineProperty(kind, member.name, { value: member });
  }

  // Comparison and truth
  function eq(a, b) {
    if (a === b) return true;
    if (a === null || b === null || a === undefined || b === undefined) return (a ?? null) === (b ?? null);
    if (typeof a !== "object" && typeof b !== "object") return typeof a !== "string" && typeof b !== "string" && Number(a) === Number(b);
    if (a.$text !== undefined || b.$text !== undefined) return (a.$text ?? a) === (b.$text ?? b);
    if (Array.isArray(a)) return Array.isArray(b) && a.length === b.length && a.every((value, at) => eq(value, b[at]));
    if (a instanceof Dict) return b instanceof Dict && a.map.size === b.map.size && [...a].every((name) => b.has(name) && eq(a.get(name), b.get(name)));
    if (a instanceof PySet) return b instanceof PySet && a.map.size === b.map.size && [...a].every((value) => b.has(value));
    return a.constructor === b.constructor && Boolean(a.constructor.$equal) && a.constructor.$fields.every((name) => eq(a[name], b[name]));
  }
  function lt(a, b) {
    if (typeof a === "number" && typeof b === "number") return a < b;
    if (Array.isArray(a) && Array.isArray(b)) {
      for (let at = 0; at < Math.min(a.length, b.length); at++) if (!eq(a[at], b[at])) return lt(a[at], b[at]);
      return a.length < b.length;
    }
    if (a instanceof PySet) return a.map.size < b.map.size && [...a].every((value) => b.has(value));
    const [x, y] = [a?.$text ?? a, b?.$text ?? b];
    const ordered = typeof x === "string" ? typeof y === "string" : [x, y].every((each) => typeof each === "number" || typeof each === "boolean");
    return ordered ? x < y : fail("TypeError", `${repr(a)} and ${repr(b)} have no order`);
  }
  const le = (a, b) => (typeof a === "number" && typeof b === "number" ? a <= b : lt(a, b) || eq(a, b));
  function truth(value) {
    if (typeof value !== "object" || value === null) return Boolean(value);
    if (value.$text !== undefined) return value.$text !== "";
    if (Array.isArray(value)) return value.length > 0;
    if (value instanceof Dict || value instanceof PySet) return value.map.size > 0;
    if (value.__bool__) return value.__bool__();
    return value.__len__ ? value.__len__() > 0 : true;
  }
  function contains(owner, value) {
    if (owner instanceof Dict || owner instanceof PySet) return owner.has(value);
    const text = owner.$text ?? owner;
    if (typeof text === "string") return text.includes(value.$text ?? value);
    if (owner.__contains__) return owner.__contains__(value);
    for (const each of owner) if (eq(each, value)) return true;
    return false;
  }
  const same = (kind, value) => {
    if (kind === callable) return typeof value === "function";
    if (kind === bool) return typeof value === "boolean";
    if (kind === int) return typeof value === "boolean" || Number.isInteger(value);
    if (kind === float) return typeof value === "number" && !Number.isInteger(value);
    if (kind === str) return typeof value === "string" || value?.$text !== undefined;
    if (kind === list || kind === tuple) return Array.isArray(value);
    if (kind === Dict || kind === dict) return value instanceof Dict;
    if (kind === set || kind === frozenset) return value instanceof PySet;
    return value instanceof kind;
  };
  const isinstance = (value, found) => found.flat(Infinity).some((kind) => same(kind, value));

  // Arithmetic
  const dunder = (name, a, b) => (a?.[name] ? a[name](b) : fail("TypeError", `${name} of ${repr(a)} and ${repr(b)}`));
  function add(a, b) {
    if (typeof a === "number" && typeof b === "number") return a + b;
    if (Array.isArray(a) && Array.isArray(b)) return [...a, ...b];
    if (a?.__add__) return a.__add__(b);
    const [x, y] = [a?.$text ?? a, b?.$text ?? b];
    if (typeof x === "string" && typeof y === "string") return x + y;
    if (typeof x === "boolean" || typeof y === "boolean") return Number(x) + Number(y);
    return dunder("__add__", a, b);
  }
  function iadd(a, b) {
    if (!Array.isArray(a)) return add(a, b);
    for (const value of b) a.push(value);
    return a;
  }
  function sub(a, b) {
    if (a instanceof PySet) return new PySet([...a].filter((value) => !b.has(value)));
    return numeric(a) - numeric(b);
  }
  function mul(a, b) {
    if (typeof a === "number" && typeof b === "number") return a * b;
    if (Array.isArray(a)) return Array.from({ length: Math.max(0, b) }, () => a).flat();
    if (Array.isArray(b)) return mul(b, a);
    if (typeof a === "string") return a.repeat(Math.max(0, b));
    if (typeof b === "string") return mul(b, a);
    return numeric(a) * numeric(b);
  }
  const numeric = (value) => (typeof value === "number" ? value : typeof value === "boolean" ? Number(value) : fail("TypeError", `${repr(value)} is no number`));
  const divisor = (value) => (numeric(value) === 0 ? fail("ZeroDivisionError", "division by zero") : Number(value));
  const div = (a, b) => numeric(a) / divisor(b);
  function mod(a, b) {
    const rest = numeric(a) % divisor(b);
    return rest !== 0 && rest < 0 !== b < 0 ? rest + Number(b) : rest;
  }
  function floordiv(a, b) {
    const whole = (numeric(a) - mod(a, b)) / b, low = Math.floor(whole);
    return whole - low > 0.5 ? low + 1 : low;
  }
  const pow = (a, b) => numeric(a) ** numeric(b);
  const shl = (a, b) => numeric(a) * 2 ** b, shr = (a, b) => Math.floor(numeric(a) / 2 ** b);
  function or(a, b) {
    if (a instanceof Dict) return new Dict([...items(a), ...items(b)]);
    if (a instanceof PySet) return new PySet([...a, ...b]);
    return typeof a === "boolean" ? a || b : dunder("__or__", a, b);
  }
  function and(a, b) {
    if (a instanceof PySet) return new PySet([...a].filter((value) => contains(b, value)));
    return typeof a === "boolean" ? a && b : dunder("__and__", a, b);
  }
  function round(value, digits = null) {
    if (digits !== null) return Number(fixed(value, digits));
    const low = Math.floor(value), rest = value - low;
    if (rest !== 0.5) return rest > 0.5 ? low + 1 : low;
    return low % 2 === 0 ? low : low + 1;
  }

  // Places in lists and dicts
  function item(owner, at) {
    if (owner instanceof Dict) {
      const found = owner.map.get(key(at));
      if (found !== undefined) return found;
      return owner instanceof Counter ? 0 : fail("KeyError", repr(at));
    }
    const found = owner[at < 0 ? owner.length + at : at];
    return found === undefined ? fail("IndexError", `there is no place ${at}`) : found;
  }
  function set_item(owner, at, value) {
    if (owner instanceof Dict) owner.set(at, value);
    else owner[at < 0 ? owner.length + at : at] = value;
  }
  function del_item(owner, at) {
    if (owner instanceof Dict) owner.delete(at) || fail("KeyError", repr(at));
    else owner.splice(at < 0 ? owner.length + at : at, 1);
  }
  function slice(owner, from, to, step) {
    if (step === null || step === 1) return owner.slice(from ?? 0, to ?? undefined);
    const size = owner.length, place = (at) => (at < 0 ? at + size : at), found = [];
    if (step > 0) for (let at = place(from ?? 0); at < Math.min(size, place(to ?? size)); at += step) found.push(owner[at]);
    else for (let at = from === null ? size - 1 : place(from); at > (to === null ? -1 : place(to)); at += step) found.push(owner[at]);
    return typeof owner === "string" ? found.join("") : found;
  }
  const items = (dict) => [...dict].map((name) => [name, dict.get(name)]);
