"""A scaling law of one's own runs: `runs` reads, `fit` fits, `findings` follow, `tables` and `picture` show them."""
