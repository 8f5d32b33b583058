  // Functions
  const callable = (value) => typeof value === "function";
  const bool = (value = false) => truth(value);
  const int = (value = 0) => (typeof value === "string" ? (/^\s*[+-]?\d+\s*$/.test(value) ? Number(value) : fail("ValueError", `${repr(value)} is no whole number`)) : Math.trunc(numeric(value)));
  const float = (value = 0) => (typeof value === "string" ? (value.trim() && !Number.isNaN(Number(value)) ? Number(value) : fail("ValueError", `${repr(value)} is no number`)) : numeric(value));
  const list = (values = []) => [...values];
  const tuple = list;
  const set = (values = []) => new PySet(values);
  const frozenset = set;
  const pairs = (values) => (values instanceof Dict ? items(values) : values);
  const dict = (...all) => {
    const known = namedOf(all);
    return new Dict([...(all.length ? pairs(all[0]) : []), ...Object.entries(known)]);
  };
  const fromkeys = (names, value = null) => new Dict([...names].map((name) => [name, value]));
  const len = (value) => value.length ?? value.map?.size ?? value.__len__();
  const abs = (value) => Math.abs(numeric(value));
  const iter = (values) => values[Symbol.iterator]();
  function next(values, ...other) {
    const found = values.next();
    return found.done ? (other.length ? other[0] : fail("StopIteration", "")) : found.value;
  }
  function any(values) {
    for (const value of values) if (truth(value)) return true;
    return false;
  }
  function all(values) {
    for (const value of values) if (!truth(value)) return false;
    return true;
  }
  function sum(values, ...more) {
    let total = more[0] instanceof Named ? more[0].start : (more[0] ?? 0);
    for (const value of values) total = add(total, value);
    return total;
  }
  function most(better) {
    return (...all) => {
      const { key: of = null, ...other } = namedOf(all);
      let best, first = true, height;
      for (const value of all.length === 1 ? all[0] : all) {
        const here = of === null ? value : of(value);
        if (first || better(here, height)) [best, height, first] = [value, here, false];
      }
      return first ? ("default" in other ? other.default : fail("ValueError", "nothing is there to choose from")) : best;
    };
  }
  const max = most((a, b) => lt(b, a)), min = most(lt);
  function sorted(values, { key: of = (value) => value, reverse = false } = {}) {
    const made = [...values].map((value) => [of(value), value]);
    const order = (a, b) => (lt(a[0], b[0]) ? -1 : lt(b[0], a[0]) ? 1 : 0);
    return made.sort(reverse ? (a, b) => order(b, a) : order).map(([, value]) => value);
  }
  const range = (...ends) => {
    const [from, to, step = 1] = ends.length === 1 ? [0, ends[0]] : ends;
    return Array.from({ length: Math.max(0, Math.ceil((to - from) / step)) }, (_, at) => from + at * step);
  };
  function* enumerate(values, start = 0) {
    for (const value of values) yield [start++, value];
  }
  function* zip(...all) {
    const { strict = false } = namedOf(all), rows = all.map((values) => [...values]);
    const size = Math.min(...rows.map((row) => row.length));
    if (strict && rows.some((row) => row.length !== size)) fail("ValueError", "zip() arguments have different lengths");
    for (let at = 0; at < size; at++) yield rows.map((row) => row[at]);
  }
  const map = (of, ...all) => [...zip(...all)].map((values) => of(...values));
  const filter = (of, values) => [...values].filter((value) => truth(of === null ? value : of(value)));
  const reversed = (values) => [...values].reverse();
  function* chain(...all) {
    for (const values of all) yield* values;
  }
  const flattened = (all) => chain(...all);
  function* accumulate(values) {
    let total = null;
    for (const value of values) yield (total = total === null ? value : add(total, value));
  }
  const divmod = (a, b) => [floordiv(a, b), mod(a, b)];
  const prod = (values) => [...values].reduce((total, value) => total * value, 1);
  function* combinations(values, count, from = 0) {
    const all = [...values];
    if (count === 0) yield [];
    else for (let at = from; at <= all.length - count; at++) for (const rest of combinations(all, count - 1, at + 1)) yield [all[at], ...rest];
  }
  const gcd = (a, b) => (b ? gcd(b, a % b) : Math.abs(a));
  // difflib's measure of how alike two texts are: twice what they share, block by block, over both lengths.
  function shared(a, b) {
    let size = 0, at = 0, there = 0;
    for (let i = 0; i < a.length; i++)
      for (let j = 0; j < b.length; j++) {
        let same = 0;
        while (i + same < a.length && j + same < b.length && a[i + same] === b[j + same]) same++;
        if (same > size) [size, at, there] = [same, i, j];
      }
    return size && size + shared(a.slice(0, at), b.slice(0, there)) + shared(a.slice(at + size), b.slice(there + size));
  }
  function get_close_matches(word, options, { n = 3, cutoff = 0.6 } = {}) {
    const scored = options.map((option) => [(2 * shared(option, word)) / (option.length + word.length || 1), option]);
    return scored.filter(([score]) => score >= cutoff).sort((a, b) => (lt(a, b) ? 1 : -1)).slice(0, n).map(([, option]) => option);
  }
  const { ceil, exp, floor, log2, log10, sqrt } = Math;
  const log = (value, base = null) => (base === null ? Math.log(value) : Math.log(value) / Math.log(base));
  const isfinite = Number.isFinite;
  const isclose = (a, b, { rel_tol = 1e-9, abs_tol = 0 } = {}) => Math.abs(a - b) <= Math.max(rel_tol * Math.max(Math.abs(a), Math.abs(b)), abs_tol);

  // Between this and JSON's objects.
  function fromJson(value) {
    if (Array.isArray(value)) return value.map(fromJson);
    return value && typeof value === "object" ? new Dict(Object.entries(value).map(([name, held]) => [name, fromJson(held)])) : value;
  }
  function toJson(value) {
    if (value === undefined) return null;
    if (typeof value === "number" && (!Number.isFinite(value) || (Number.isInteger(value) && !Number.isSafeInteger(value))))
      fail("ValueError", `a figure is too large to be exact: ${value}`);
    if (value?.$text !== undefined) return value.$text;
    if (Array.isArray(value)) return value.map(toJson);
    return value instanceof Dict ? Object.fromEntries(items(value).map(([name, held]) => [str(name), toJson(held)])) : value;
  }

  return {
    ...kinds, Exception, Named, Dict, Counter, PySet, Enum, members, eq, lt, le, truth, contains, isinstance, add, iadd, sub, mul, div, mod,
    floordiv, pow, shl, shr, or, and, round, item, set_item, del_item, slice, items, str, repr, format, method, call, invoke, create, packed,
    unpack, named: pyNamed, partial, cached, load, enter, leave, Model, make, fields, replace, modules, import_module, hasattr, getattr, bool, int,
    float, list, tuple, set, frozenset, dict, fromkeys, len, abs, iter, next, any, all, sum, max, min, sorted, range, enumerate, zip,
    map, filter, reversed, chain, flattened, accumulate, combinations, divmod, prod, gcd, get_close_matches, ceil, exp, floor, log2, log10, sqrt, log,
    isfinite, isclose, fromJson, toJson, callable,
  };
})();
