  const LIST = {
    append: (list, value) => void list.push(value),
    extend: (list, values) => void list.push(...values),
    insert: (list, at, value) => void list.splice(at, 0, value),
    pop: (list, at = -1) => (list.length ? list.splice(at, 1)[0] : fail("IndexError", "pop from empty list")),
    remove: (list, value) => void list.splice(LIST.index(list, value), 1),
    index(list, value) {
      const at = list.findIndex((each) => eq(each, value));
      return at < 0 ? fail("ValueError", `${repr(value)} is not there`) : at;
    },
    count: (list, value) => list.filter((each) => eq(each, value)).length,
    copy: (list) => [...list],
    clear: (list) => void (list.length = 0),
    reverse: (list) => void list.reverse(),
    sort: (list, named = {}) => void list.splice(0, list.length, ...sorted(list, named)),
  };
  const DICT = {
    get(dict, name, other = null) {
      const found = dict.map.get(key(name));
      return found === undefined ? other : found;
    },
    items,
    keys: (dict) => [...dict],
    values: (dict) => [...dict.map.values()],
    copy: (dict) => new dict.constructor(dict instanceof Counter ? dict : items(dict)),
    clear: (dict) => void dict.map.clear(),
    pop(dict, name, other) {
      const found = dict.get(name);
      dict.delete(name);
      return found ?? other ?? (found === null || other === null ? null : fail("KeyError", repr(name)));
    },
    setdefault(dict, name, value = null) {
      if (!dict.has(name)) dict.set(name, value);
      return dict.get(name);
    },
    update(dict, values = []) {
      for (const [name, value] of pairs(values)) dict.set(name, dict instanceof Counter ? (dict.get(name) ?? 0) + value : value);
    },
    most_common: (dict) => items(dict).sort((a, b) => b[1] - a[1]),
    elements: (dict) => items(dict).flatMap(([value, times]) => Array(times).fill(value)),
    total: (dict) => sum(DICT.values(dict)),
  };
  const SET = {
    add: (set, value) => set.add(value),
    discard: (set, value) => void set.delete(value),
    remove: (set, value) => void (set.delete(value) || fail("KeyError", repr(value))),
    update(set, values) { for (const value of values) set.add(value); },
    union: (set, values = []) => new PySet([...set, ...values]),
    intersection: (set, values) => and(set, new PySet(values)),
    difference: (set, values) => sub(set, new PySet(values)),
    issubset: (set, values) => [...set].every((value) => contains(values, value)),
    issuperset: (set, values) => [...values].every((value) => set.has(value)),
    isdisjoint: (set, values) => ![...values].some((value) => set.has(value)),
    copy: (set) => new PySet(set),
  };
  const NUMBER = { is_integer: Number.isInteger, bit_length: (value) => (value ? Math.floor(Math.log2(Math.abs(value))) + 1 : 0) };
  function typeOf(value) {
    if (typeof value === "string") return STR;
    if (typeof value === "number" || typeof value === "boolean") return NUMBER;
    if (Array.isArray(value)) return LIST;
    if (value instanceof Dict) return DICT;
    return value instanceof PySet ? SET : null;
  }
  // A method that may be one of Python's own types', with up to three arguments.
  function method(owner, name, a, b, c) {
    const own = typeOf(owner);
    if (own) return own[name] ? own[name](owner, a, b, c) : fail("AttributeError", `${repr(owner)} has no ${name}`);
    if (owner[name]) return owner[name](...[a, b, c].slice(0, arguments.length - 2));
    return owner.$text !== undefined ? STR[name](owner.$text, a, b, c) : fail("AttributeError", `${repr(owner)} has no ${name}`);
  }

  // Calls
  function place(found, all, named) {
    for (const name in named) {
      const at = found.indexOf(name);
      if (at < 0) fail("TypeError", `there is no parameter ${name}`);
      while (all.length < at) all.push(undefined);
      all[at] = named[name];
    }
    return all;
  }
  function call(found, all, named, owner = null) {
    if (found.$fields) return create(found, all, named);
    const known = found.$signature;
    if (!known || !Array.isArray(known)) return found.apply(owner, [...all, new Named(named)]);
    return found.apply(owner, place(known, all, named));
  }
  function invoke(owner, name, all, named) {
    const own = typeOf(owner);
    return own ? own[name](owner, ...all, named) : call(owner[name], all, named, owner);
  }
  const create = (kind, all, named) => new kind(...place(kind.$made ?? kind.prototype.$init.$signature, all, named));
  const packed = (names, only, rest, others) => ({ names, only, rest, others });
  // Parameters in their order from what was given by place and by name; the rest and the other names at the end.
  function unpack(all, { names, only, rest, others }) {
    const named = { ...namedOf(all) }, found = all.slice(0, names.length), more = all.slice(names.length);
    if (more.length && !rest) fail("TypeError", "too many arguments");
    found.length = names.length;
    for (const [at, name] of [...names, ...only].entries()) {
      if (name in named) found[at] = named[name];
      else if (at >= names.length) found[at] = undefined;
      delete named[name];
    }
    if (Object.keys(named).length && !others) fail("TypeError", `there is no parameter ${Object.keys(named)[0]}`);
    return [...found, ...(rest ? [more] : []), ...(others ? [new Dict(Object.entries(named))] : [])];
  }
  const pyNamed = (dict) => Object.fromEntries(items(dict).map(([name, value]) => [str(name), value]));
  function partial(found, ...first) {
    const known = namedOf(first);
    return (...all) => {
      const named = { ...known, ...namedOf(all) };
      return call(found, [...first, ...all], named);
    };
  }
  function cached(found) {
    const known = new Dict();
    return (...all) => {
      if (!known.has(all)) known.set(all, found(...all));
      return known.get(all);
    };
  }
  function load(owner, name) {
    const found = owner[name];
    if (typeof found !== "function" || Object.hasOwn(owner, name)) return found;
    const bound = found.bind(owner);
    bound.$signature = found.$signature;
    return bound;
  }
  const enter = (context) => (context.next ? context.next().value : context.__enter__());
  const leave = (context) => (context.next ? context.next() : context.__exit__(null, null, null));

  // Objects
  class Model {
    constructor(...all) { this.$init(...all); }
    model_copy(named = {}) { return make(this.constructor, { ...this, $key: undefined, ...pyNamed(named.update) }); }
    model_dump({ exclude = new PySet(), exclude_defaults = false } = {}) {
      const plain = exclude_defaults ? new this.constructor() : {};
      const kept = this.constructor.$fields.filter((name) => !exclude.has(name) && !(exclude_defaults && eq(this[name], plain[name])));
      return new Dict(kept.map((name) => [name, this[name]]));
    }
  }
  const make = (kind, values) => Object.assign(Object.create(kind.prototype), values);
  const fields = (owner) => (owner.$fields ?? owner.constructor.$fields).map((name) => ({ name }));
  function replace(owner, changes = {}) {
    const { $fields: names } = owner.constructor;
    for (const name of Object.keys(changes)) if (!names.includes(name)) fail("TypeError", `there is no field ${name}`);
    return new owner.constructor(...names.map((name) => (name in changes ? changes[name] : owner[name])));
  }
  const modules = {};
  const import_module = (name) => modules[name] ?? fail("KeyError", `the module ${name} is not part of this page`);
  const hasattr = (owner, name) => owner?.[name] !== undefined;
  const getattr = (owner, name, ...other) => (hasattr(owner, name) ? load(owner, name) : other.length ? other[0] : fail("AttributeError", name));
