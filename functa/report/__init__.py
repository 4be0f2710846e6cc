"""report.html and other output for people: sections, charts, and the names and units of metrics.

Everything is read from the files of a run; evaluation/ computes the arrays that the report shows.
"""
