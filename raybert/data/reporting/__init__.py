"""The report of a run: figures, a pure function of its folder, and the page that shows them.

It goes from `parts` (columns, one part at a time) through `tallies` (what is counted), `answers` and `vectors` (one
tally a task), `examples` (drawn rows, read once more) and `times` (speed, stages and plan, from the run's history)
to `facts`, which is report.json; `figures`, `blocks` and `page` draw them.
"""
