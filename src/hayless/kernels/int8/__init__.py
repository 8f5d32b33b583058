"""Products of 8-bit integers with columns of outliers in 16 bits, as LLM.int8() needs them."""
