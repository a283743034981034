"""Rows of a table become requests, and come back with their answers as further columns.

`read` gives the rows of a file, `prompt` makes a request of each, `answers` joins them with their results, and `write`
writes them. Streaming and in order; knows no store and no engine.
"""
