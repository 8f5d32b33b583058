// Translated functions, from JSON's objects to JSON's objects. What Python would raise is an answer too.
function answering(compute) {
  return (request) => {
    try {
      return { found: py.toJson(compute(py.fromJson(request))) };
    } catch (error) {
      if (error instanceof py.Exception) return { error: error.message, hint: error.hint ?? null };
      throw error;
    }
  };
}
