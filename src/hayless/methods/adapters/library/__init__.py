"""A library of modules: many adapters of one base, found by what their tasks look like.

`store` is the folder, `embedding` turns examples into vectors, `retrieving` finds modules and composes them.
"""
